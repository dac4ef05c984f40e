package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
)

// Limits of the leader's labels. Each costs Nomad an evaluation, which must not delay boots
// while thousands of engines change their state together, as when a node fails.
const (
	labelEvery  = 2 * time.Second
	labelsAPass = 10
	// labelRest is how long the last operation of an engine must be over. An engine that
	// sleeps and wakes all the time is not labelled each time, and the next operation, such
	// as its sleep, does not meet the label's change of the row.
	labelRest = 10 * time.Second
	// labelPause follows a label that Nomad refuses, or cannot take now.
	labelPause = 30 * time.Second
)

// labelLoop keeps what jobs show in Nomad's UI right, while this replica leads: the user of
// a claimed warm engine, and states that no operation wrote into the job, such as that of a
// process that crashed.
func (s *Scheduler) labelLoop(ctx context.Context) {
	for wait := labelEvery; pause.For(ctx, wait); {
		wait = labelEvery
		if !s.informed() {
			continue
		}
		s.warm.awaitQuiet(ctx)
		if err := s.labelSome(ctx); err != nil {
			s.log.Debug("cannot label a job; retrying", "error", err)
			wait = labelPause
		}
	}
}

// labelSome labels some of the jobs that show an outdated state or owner. The order is
// random, so that jobs that cannot be labelled do not keep others from it. It returns the
// first error that the next pass would probably meet, too.
func (s *Scheduler) labelSome(ctx context.Context) error {
	rows, left := s.mirror.All(), labelsAPass
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	for _, row := range rows {
		if row.Op != nil || row.Warm != "" || !row.Unlabelled && row.Shown == shown(row) {
			continue
		}
		if s.nodeSilent(row.NodeID) { // see writeLabel
			continue
		}
		if row.Last != nil && time.Since(row.Last.EndedAt) < labelRest && !row.Unlabelled {
			continue
		}
		if err := s.label(ctx, row); err != nil && !overtaken(err) && !errors.Is(err, cluster.ErrNotFound) && !errors.Is(err, errReconnecting) {
			return fmt.Errorf("engine %s: %w", row.EngineID, err)
		}
		if left--; left == 0 {
			return nil
		}
	}
	return nil
}

// label writes an engine's owner and state into its job. It does not overwrite concurrent
// changes of the job or the row, and starts and ends no process: the change is made in place.
func (s *Scheduler) label(ctx context.Context, row *engine.Row) error {
	job, err := s.cluster.Job(ctx, row.JobID())
	if err != nil {
		return err
	}
	state := shown(row)
	// Nobody knows what the job says until this is finished.
	row = row.Clone()
	if row.Shown != "" && row.Shown != state {
		row.Shown = ""
		if err := s.store.Update(ctx, row); err != nil {
			return err
		}
	}
	if row.Unlabelled {
		jobs.Label(job, jobs.Engine{EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID})
	}
	if (jobs.Note{Shown: state}).Write(job) || row.Unlabelled {
		if err := s.writeLabel(ctx, job); err != nil {
			return err
		}
	}
	if row.Unlabelled {
		if err := s.witness(ctx, row); err != nil {
			return err
		}
	}
	row.Unlabelled, row.Shown = false, state
	return s.store.Update(ctx, row)
}

// errReconnecting means that a job must not be written now.
var errReconnecting = errors.New("the node of its allocation is not connected")

// writeLabel writes a job, unless that would start or end a process. If the job requests a
// process and Nomad knows no allocation of it any more, as when it has removed that of an
// engine that was given up, it would make one: the job then stays as it is. And Nomad stops
// an allocation that comes back with its node, if the job has another version by then
// (scheduler/reconciler, reconcileReconnecting): errReconnecting.
func (s *Scheduler) writeLabel(ctx context.Context, job *api.Job) error {
	if jobs.Runs(job) {
		statuses, err := s.cluster.AllocStatuses(ctx, *job.ID)
		switch {
		case err != nil:
			return err
		case len(statuses) == 0:
			return nil
		case slices.Contains(statuses, api.AllocClientStatusUnknown):
			return errReconnecting
		}
	}
	_, err := s.cluster.Register(ctx, job, *job.JobModifyIndex)
	return err
}

// shown returns the state of an engine as its job shows it, with the reason.
func shown(row *engine.Row) string {
	if row.Reason == "" {
		return string(row.State)
	}
	return string(row.State) + ", " + row.Reason
}

// witness writes the owner into an engine's variable, and keeps the hash in it.
func (s *Scheduler) witness(ctx context.Context, row *engine.Row) error {
	v, err := s.cluster.Variable(ctx, row.JobID())
	if err != nil {
		return err
	}
	v.Witness = s.witnessOf(row)
	return s.cluster.PutVariable(ctx, row.JobID(), v)
}
