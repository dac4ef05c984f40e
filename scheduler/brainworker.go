package scheduler

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

const (
	// workerPlaced is how long a worker may wait for room on its node.
	workerPlaced = 60 * time.Second
	// workerEnds is how long a worker may take to end: kill_timeout in its job file, and the
	// time for Nomad to report it.
	workerEnds = 30 * time.Second
	// firstLook and lastLook are the intervals at which a worker is polled: many take less
	// than a second, and some an hour. Each is a tenth longer than the one before, so its end
	// is seen when it is at most a tenth of its time ago.
	firstLook, lastLook = 100 * time.Millisecond, 2 * time.Second
	// urlsValid is for how long the URLs of an order are valid. With credentials of an
	// instance it is shorter, because they end with the credentials.
	urlsValid = 12 * time.Hour
	// storeAway is how long a worker tries a store that is away, each time that Nomad starts
	// it (four times, nomad-jobs/brain.nomad.hcl): other changes of the engine wait for it.
	storeAway = time.Minute
	// copyAsked is how long a worker waits for the request to copy, which comes as soon as it
	// listens.
	copyAsked = time.Minute
	// reportLag is how long a worker's last line may take to arrive after its end.
	reportLag = 10 * time.Second
	// turnLook is the interval of checking whether it is this worker's turn.
	turnLook = 200 * time.Millisecond
)

// workersOf returns the prefix of the names of all workers of an engine.
func workersOf(engineID string) string { return jobs.WorkerPrefix + engineID + "-" }

// worker returns the name of the operation's current worker. Each attempt has its own name,
// because a worker may have copied while the engine was not frozen.
func (o *work) worker() string {
	return workersOf(o.Row.EngineID) + o.ID[:10] + "-" + strconv.Itoa(o.Row.Op.Attempt)
}

// awaitTurn waits until fewer than the permitted number of workers are before this one on
// its node. Operations take their turns in the order in which they began, by all replicas'
// view of the rows; a replica with an outdated view may let one more in.
func (o *work) awaitTurn(ctx context.Context) error {
	mine := o.Row.Op
	for {
		before := 0
		for _, row := range o.s.mirror.All() {
			if op := row.Op; op != nil && op.Worker == mine.Worker && op.ID != mine.ID && goesBefore(op, mine) {
				before++
			}
		}
		if err := o.disturbed(); err != nil {
			return err
		}
		if before < max(1, o.s.opts.Snapshots.PerNode) {
			return nil
		}
		if time.Now().After(mine.Deadline) {
			return engine.Errorf(engine.SnapshotFailed, "too many snapshots are being made on the engine's node; retry later")
		}
		if !pause.For(ctx, turnLook) {
			return ctx.Err()
		}
	}
}

// goesBefore reports whether the worker of an operation goes before that of another one.
// Whatever somebody asked for, or depends on, does not wait for a drill.
func goesBefore(op, other *engine.Operation) bool {
	if drill := op.Kind == engine.OpDrill; drill != (other.Kind == engine.OpDrill) {
		return !drill
	}
	return op.BeganAt.Before(other.BeganAt) || op.BeganAt.Equal(other.BeganAt) && op.ID < other.ID
}

// errNoWorker: with docker, the setting has no default.
var errNoWorker = engine.Errorf(engine.SnapshotFailed, "the service does not know the program that makes snapshots; an operator must set ORCH_SNAPSHOT_WORKER")

// startWorker completes an order for a volume, and registers a worker with it. mounts: it
// reads the volume without a claim.
func (o *work) startWorker(ctx context.Context, order *brain.Order, at engine.Place, mounts bool) error {
	workers := o.s.workers.Load()
	if workers == nil {
		return fmt.Errorf("%w: the job file of workers is not parsed yet", cluster.ErrUnavailable)
	}
	if o.s.opts.Snapshots.Worker == "" {
		return errNoWorker
	}
	directory := workers.Brain(at.VolumePath)
	if order.Snapshot != nil {
		order.Snapshot.Brain = directory
	} else {
		order.Restore.Volume = directory
	}
	order.ID = strings.TrimPrefix(o.worker(), workersOf(o.Row.EngineID))
	order.Work, order.CA, order.BytesPerSecond = jobs.WorkerAlloc+"/data/orch", o.s.opts.Snapshots.CA, o.s.opts.Snapshots.BytesPerSecond
	order.GiveUpS = int64(storeAway.Seconds())
	text, err := json.Marshal(order)
	if err != nil {
		return err
	}
	job, err := workers.Render(jobs.Worker{
		JobID: o.worker(), EngineID: o.Row.EngineID, NodeID: at.NodeID, NodePool: o.Row.NodePool,
		VolumeName: cmp.Or(at.VolumeName, o.Row.JobID()), VolumePath: at.VolumePath, Mounts: mounts, DeploymentID: o.s.guard.ID(),
	}, order.Restore != nil)
	if err != nil {
		return err
	}
	if err := o.Fence(ctx); err != nil {
		return err
	}
	if err := o.s.cluster.StartWorker(ctx, job, string(text)); err != nil {
		return err
	}
	return o.unlessLate(ctx, func(ctx context.Context, now *engine.Row) error {
		if now != nil && now.Op != nil && now.Op.ID == o.ID && now.Op.Attempt == o.Row.Op.Attempt && now.Op.Worker != "" {
			return nil // another replica waits for this worker, and removes it
		}
		return o.s.removeWorkers(ctx, *job.ID)
	})
}

// unlessLate verifies, after an action without check-and-set, that this replica still owned
// the operation. If not, because it was paused before the action, withdraw is called with the
// present row; nil: the engine is gone. It reads the row: a replica that was paused has no
// session for a while, and the step must not be repeated before the action is withdrawn.
func (o *work) unlessLate(ctx context.Context, withdraw func(context.Context, *engine.Row) error) error {
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*workerEnds)
	defer cancel()
	for {
		now, err := o.s.store.Engine(lasting, o.Row.ProductID, o.Row.UserID)
		if err == nil && now.Op != nil && now.Op.ID == o.ID && now.Op.Owner == o.s.replica.ID {
			return nil
		}
		present := now
		if errors.Is(err, registry.ErrNotFound) || err == nil && now.EngineID != o.Row.EngineID {
			present = nil
		} else if err != nil {
			if !pause.For(lasting, turnLook) {
				return err
			}
			continue
		}
		if werr := withdraw(lasting, present); werr != nil {
			o.Log.Warn("cannot withdraw what this replica did after it had lost the operation", "error", werr)
		}
		return o.Lost(ctx, now, err)
	}
}

// watchWorker polls the operation's worker until look returns true or an error.
func (o *work) watchWorker(ctx context.Context, nodeID string, look func(context.Context, *cluster.WorkerState) (bool, error)) error {
	waits := time.Now() // since when it has no process
	for wait := firstLook; ; wait = min(wait*11/10, lastLook) {
		state, err := o.s.cluster.Worker(ctx, o.worker())
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			return engine.Errorf(engine.SnapshotFailed, "somebody has removed the job of the snapshot's worker from Nomad; retry")
		case err != nil && !errors.Is(err, cluster.ErrUnavailable):
			return err
		case err == nil:
			if done, err := look(ctx, state); done || err != nil {
				return err
			}
			if state.Running || state.Ended || state.Pulling {
				waits = time.Now()
			}
			if time.Since(waits) > workerPlaced {
				return notStarted(state)
			}
		}
		if err := o.disturbed(); err != nil {
			return err
		}
		if o.s.nodeSilent(nodeID) {
			return &engine.Error{Code: engine.SnapshotFailed, Message: "the node of the brain does not respond", Err: errNodeSilent}
		}
		if time.Now().After(o.Row.Op.Deadline) {
			return &engine.Error{Code: engine.SnapshotFailed, Message: "the snapshot's worker took too long", Err: errors.Join(err, context.DeadlineExceeded)}
		}
		if !pause.For(ctx, wait) {
			return ctx.Err()
		}
	}
}

// awaitResult waits for the end of the operation's worker, and returns what it reported.
func (o *work) awaitResult(ctx context.Context, nodeID string) (result *brain.Result, err error) {
	var log []byte
	var ended *cluster.WorkerState
	var endedAt time.Time
	err = o.WhileOwned(ctx, func(ctx context.Context) error {
		return o.watchWorker(ctx, nodeID, func(ctx context.Context, state *cluster.WorkerState) (bool, error) {
			if !state.Ended {
				return false, nil
			}
			if ended == nil {
				ended, endedAt = state, time.Now()
			}
			text, err := o.s.cluster.WorkerLog(ctx, state.AllocID)
			switch {
			case errors.Is(err, cluster.ErrDenied):
				return false, err
			case errors.Is(err, cluster.ErrUnavailable):
				return time.Since(endedAt) > 2*workerEnds, nil // its node has it
			case errors.Is(err, cluster.ErrNotFound):
				err = nil // it never began
			}
			log = text
			// Nomad may collect the last line after it has reported the end.
			return lastReport(text) != nil || time.Since(endedAt) > reportLag, err
		})
	})
	if err != nil {
		return nil, err
	}
	report := lastReport(log)
	switch {
	case report != nil && report.Result != nil:
		return report.Result, nil
	case report != nil && report.Error != nil:
		return nil, &brain.Error{Kind: report.Error.Kind, Message: report.Error.Message}
	case ended.Failure != "":
		return nil, engine.Errorf(engine.SnapshotFailed, "the snapshot's worker could not run: %s", ended.Failure)
	}
	return nil, engine.Errorf(engine.SnapshotFailed, "the snapshot's worker ended without a report")
}

// lastReport returns the report with which a worker ended; nil: it wrote none.
func lastReport(log []byte) *brain.Report {
	var last *brain.Report
	for line := range bytes.Lines(log) {
		r := new(brain.Report)
		if json.Unmarshal(line, r) == nil && r.Phase == "done" {
			last = r
		}
	}
	return last
}

// removeWorker ends the operation's workers, waits until Nomad reports that none runs, and
// removes them with their orders. A node that does not respond is not waited for: its worker
// has only what its order allows it.
func (o *work) removeWorker(ctx context.Context) error {
	if err := o.s.removeWorkers(ctx, workersOf(o.Row.EngineID)+o.ID[:10]+"-"); err != nil {
		return err
	}
	o.Row.Op.Worker = ""
	return nil
}

// removeWorkers removes all workers with a prefix.
func (s *Scheduler) removeWorkers(ctx context.Context, prefix string) error {
	names, err := s.cluster.Workers(ctx, prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.cluster.StopWorker(ctx, name); err != nil {
			return err
		}
		until := time.Now().Add(workerEnds)
		for wait := firstLook; ; wait = min(2*wait, time.Second) {
			state, err := s.cluster.Worker(ctx, name)
			if errors.Is(err, cluster.ErrNotFound) || err == nil && (state.Ended || state.AllocID == "") || time.Now().After(until) {
				break
			}
			if err != nil && !errors.Is(err, cluster.ErrUnavailable) {
				return err
			}
			if !pause.For(ctx, wait) {
				return ctx.Err()
			}
		}
		if err := s.cluster.ForgetWorker(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
