package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/operation"
)

// beginMove begins to move an engine to another node.
func (s *Scheduler) beginMove(ctx context.Context, row *engine.Row, actor string) (*operation.Operation, error) {
	return s.propose(ctx, row, proposal{
		kind: engine.OpMove, action: audit.ActionMove, actor: actor, backends: []string{"nomad", "vault"},
		details: map[string]any{"from": row.NodeID},
		prepare: func(row *engine.Row) error {
			switch {
			case s.opts.Snapshots.Worker == "":
				return errNoWorker
			case row.State == engine.Provisioning || row.State == engine.Destroying:
				return engine.BusyWith(engine.OpDestroy)
			case !movable(row):
				return engine.Errorf(engine.SnapshotFailed, "the engine has no brain that could be moved")
			case s.nodeSilent(row.NodeID):
				return &engine.Error{Code: engine.SnapshotFailed, Message: "the engine's node does not respond, so its brain cannot be read", Err: errNodeSilent, RetryAfter: retryCapacity}
			}
			if row.Snapshot == nil {
				row.Snapshot = &engine.SnapshotRef{} // it has one from now on
			}
			row.Op = &engine.Operation{Restoring: &engine.Restoring{EngineID: row.EngineID}} // see propose
			return nil
		},
	})
}

// movable reports whether an engine has a brain.
func movable(row *engine.Row) bool {
	return row.VolumeID != "" && row.Reason != engine.ReasonBrainMissing
}

// movesRunning reports whether the operation moves an engine that runs, and so starts it.
func (o *work) movesRunning() bool { return o.Row.Op.From == engine.Running }

// nameAway chooses another node for the engine, and a name for its volume there. Both are in
// the row before the volume exists. A running engine is not stopped for a node that has no
// room for it.
func (o *work) nameAway(ctx context.Context) error {
	row, r := o.Row, o.Row.Op.Restoring
	var to *place
	for _, engines := range []int{o.s.opts.EvacuateParallel, 1} { // others may be on their way to the same node
		p, err := o.s.choose(ctx, row.NodePool, row.Resources, engines, map[string]bool{row.NodeID: true})
		if err != nil {
			return err
		}
		o.s.pool.Release(p.pooled) // its name is that of another engine
		if to = p; p.fits {
			break
		}
	}
	if !to.fits && o.movesRunning() {
		return &engine.Error{Code: engine.CapacityExhausted, Message: "no other node has room for the engine, so it stays where it is", RetryAfter: retryCapacity}
	}
	if err := o.nameVolume(ctx, (*engine.Row).FreshRestoreName); err != nil {
		return err
	}
	former := row.Place()
	r.Former, r.Target = &former, engine.Place{NodeID: to.node.ID, VolumeName: row.NextVolume}
	return nil
}

// unreadable reports whether Nomad would not place a worker that reads the engine's brain.
func (o *work) unreadable() bool {
	n, known := o.s.cluster.Node(o.Row.NodeID)
	return !o.s.nodeSilent(o.Row.NodeID) && (!known || !n.Eligible)
}

var errUnreadable = engine.Errorf(engine.EngineBusy, "the engine's node is not eligible in Nomad, so its brain cannot be copied; make it eligible, or retry when it is")

// awaitReader waits for the turn of the worker that reads the engine's brain, as long as the
// engine still runs.
func (o *work) awaitReader(ctx context.Context) error {
	if op := o.Row.Op; op.Worker != o.Row.NodeID {
		op.Worker = o.Row.NodeID
		op.Attempt++
		if err := o.Save(ctx); err != nil {
			return err
		}
	}
	return o.WhileOwned(ctx, o.awaitTurn)
}

// beginPass begins the snapshot that takes the brain to the other node, while the engine still
// runs: a store or a key that is away is no reason to stop it.
func (o *work) beginPass(ctx context.Context) error {
	op := o.Row.Op
	if op.Taking == nil {
		op.Taking = &engine.Taking{SnapshotID: newSnapshotID(o.Row), Trigger: engine.TriggerMove}
	}
	return o.beginUpload(ctx)
}

// endForMove ends the engine's process, and one that sleeps frozen. From here on a running
// engine is down until it has been moved. It is not ended if Nomad would not place the worker
// that copies its brain.
func (o *work) endForMove(ctx context.Context) error {
	row := o.Row
	if !row.Op.Restoring.Ended && o.unreadable() {
		return errUnreadable
	}
	if o.movesRunning() {
		row.Op.Restoring.Ended = true
		row.Restarts = nil
	}
	row.Op.Deadline = time.Now().UTC().Add(o.s.ops.Limit(engine.OpStop))
	if err := o.Save(ctx); err != nil {
		return err
	}
	return o.quiesce(ctx)
}

// copyToPass starts the worker that copies the brain. No process of the engine runs.
func (o *work) copyToPass(ctx context.Context) error {
	o.Row.Frozen = nil
	o.Row.Op.Deadline = time.Now().UTC().Add(operation.BrainTimeout)
	return o.prepareCopy(ctx)
}

// pass makes the stored snapshot the one that is restored on the other node.
func (o *work) pass(ctx context.Context) error {
	if err := o.removeWorker(ctx); err != nil {
		return err
	}
	op := o.Row.Op
	r, t := op.Restoring, op.Taking
	r.SnapshotID, r.Content, r.Recipient, r.At = t.SnapshotID, &t.Result.Content, t.Recipient, t.At
	op.Worker = r.Target.NodeID
	op.Attempt++
	op.Deadline = time.Now().UTC().Add(operation.BrainTimeout)
	return nil
}

// switchPlace gives the engine its volume on the other node, in one write of its row.
func (o *work) switchPlace(context.Context) error {
	r := o.Row.Op.Restoring
	r.Ended = true
	o.Row.PutAt(r.Target)
	return nil
}

// registerMoved registers the engine's job on the other node, with a process if the engine
// ran.
func (o *work) registerMoved(ctx context.Context) error {
	if o.movesRunning() {
		return o.register(ctx)
	}
	return o.registerAtRest(ctx)
}

// bootMoved waits until the engine is healthy on the other node, if it ran.
func (o *work) bootMoved(ctx context.Context) error {
	if o.movesRunning() {
		return o.boot(ctx)
	}
	return nil
}

// registerAtRest registers the job of an engine without a process: a registry that is lost is
// rebuilt from it.
func (o *work) registerAtRest(ctx context.Context) error {
	job, err := o.render(0)
	if err != nil {
		return err
	}
	after := o.Row.Clone()
	after.Op = nil
	note := jobs.Note{Shown: shown(after)}
	if after.State == engine.Stopped || after.State == engine.Sleeping {
		note.Rest = string(after.State)
	}
	note.Write(job)
	if _, _, err := o.registerOnce(ctx, job); err != nil {
		return err
	}
	o.Row.Shown = note.Shown
	return nil
}

// restAgain registers the job of an engine without a process with its former volume, after a
// failed move.
func (o *work) restAgain(ctx context.Context) error {
	if o.movesRunning() || !o.Row.Op.Restoring.Ended {
		return nil
	}
	return o.registerAtRest(ctx)
}

// decideMove is the part of the table of admission for an engine that is being moved.
func decideMove(row *engine.Row, opts AdmitOptions) (way, Denial) {
	switch row.State {
	case engine.Stopped:
		return denied, DenialStopped
	case engine.Failed:
		return denied, DenialUnhealthy
	case engine.Sleeping:
		if !opts.AutoWake {
			return denied, DenialSleeping
		}
		if !row.Op.Restoring.Ended && row.Op.Undo == "" {
			return woken, "" // the move gives way
		}
	}
	return joined, ""
}

// moving reports whether an engine is on its way to another node.
func moving(row *engine.Row) bool { return row.Op != nil && row.Op.Kind == engine.OpMove }
