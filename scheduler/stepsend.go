package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/operation"
)

// quiesce sets the count of the engine's job to 0, so that its process ends and is not
// started again. If it undoes or destroys, it always writes its mark: if the count is
// already 0, the mark changes the index, so that a paused owner cannot register any more.
func (o *work) quiesce(ctx context.Context) error {
	note := o.ending()
	if err := o.letEnd(ctx); err != nil {
		return err
	}
	for {
		index, err := o.s.cluster.ScaleToZero(ctx, o.Row.JobID(), note, func() error { return o.Fence(ctx) })
		if o.quietAt = index; err == nil && note.Shown != "" {
			o.Row.Shown = note.Shown
		}
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			if o.Row.Op.Undo != "" && o.Row.AllocID != "" && o.Row.Vanished == nil { // somebody has purged the job meanwhile
				o.Row.Vanished = &engine.Vanished{AllocID: o.Row.AllocID, NodeID: o.Row.NodeID, Since: time.Now().UTC()}
			}
			return nil
		case !errors.Is(err, cluster.ErrConflict):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// ending returns what quiesce writes into the job: a mark if nobody may register it any
// more, and the engine's state when the operation ends, for people who look at the job, and
// for the case that the registry is lost.
func (o *work) ending() (n jobs.Note) {
	op := o.Row.Op
	if op.Undo != "" || op.Kind == engine.OpDestroy {
		n.Mark = o.ID + "-end"
	}
	after := o.Row.Clone()
	switch {
	case op.Kind == engine.OpDestroy:
		after.State, after.Reason = engine.Destroying, ""
	case op.Kind == engine.OpStop || op.Kind == engine.OpSleep || op.Undo != "":
		operation.Close(&plans, o.s.opts.Restart, after, time.Now())
	default:
		return n // a process follows
	}
	n.Shown = shown(after)
	if after.State == engine.Stopped || after.State == engine.Sleeping {
		n.Rest = string(after.State)
	}
	return n
}

// awaitGone waits until no process of the engine is left, according to its node.
func (o *work) awaitGone(ctx context.Context) error {
	if err := o.letEnd(ctx); err != nil { // its node may have been unreachable until now
		return err
	}
	var allocs []cluster.Alloc
	err := o.WhileOwned(ctx, func(ctx context.Context) (err error) {
		allocs, err = o.processesGone(ctx)
		return err
	})
	if errors.Is(err, errVanished) {
		err = o.outlastVanished(ctx)
	}
	if err == nil {
		err = o.prove(ctx, allocs)
	}
	return o.noteSilence(ctx, err)
}

// noteSilence writes into the row of a running engine why an operation waits: its node does
// not respond, Nomad does not know its volume, or its process crashed. Nothing else reports
// that while the operation is in progress.
func (o *work) noteSilence(ctx context.Context, err error) error {
	kind, reason := o.Row.Op.Kind, ""
	switch {
	case errors.Is(err, errNodeSilent):
		reason = engine.ReasonNodeDown
	case errors.Is(err, errStateLost):
		reason = engine.ReasonVolumeUnknown
	case errors.Is(err, errUnproven):
		reason = engine.ReasonCrashed
	}
	if reason == "" || o.Row.State != engine.Running || kind != engine.OpStop && kind != engine.OpRotateKey {
		return err
	}
	o.Row.State, o.Row.Reason = engine.Failed, reason
	id, berr := o.s.begin(ctx, o.Row, audit.ActionHealthFailed, actorSystem, map[string]any{"reason": reason})
	if berr != nil {
		o.Row.State, o.Row.Reason = engine.Running, ""
		return err // the next attempt writes it
	}
	began, serr := time.Now(), o.Save(ctx)
	o.s.abandon(ctx, id, began, serr)
	if serr != nil {
		return serr
	}
	return err
}

// drainUntil returns when an operation stops waiting for a process, for now. After the
// deadline the caller has its error; each later attempt waits as long as a process may take
// to end.
func (o *work) drainUntil() time.Time {
	until := o.Row.Op.Deadline
	if later := time.Now().Add(killGrace); o.Told() && until.Before(later) {
		until = later
	}
	if v := o.Row.Vanished; v != nil {
		if later := v.Since.Add(vanishedGrace + killMargin); until.Before(later) {
			until = later
		}
	}
	return until
}

// processesGone waits until every process of the engine that Nomad knows has ended,
// according to Nomad, and returns the allocations. errVanished: the row has a process that
// Nomad does not know.
func (o *work) processesGone(ctx context.Context) (allocs []cluster.Alloc, err error) {
	ctx, cancel := context.WithDeadline(ctx, o.drainUntil())
	defer cancel()
	w := o.s.cluster.Watch(o.Row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, o.unconfirmed(ctx, err)
	}
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		for _, a := range state.Allocs {
			if o.Row.Left(a.NodeID) { // Nomad ends it when its node is back
				continue
			}
			if o.s.nodeSilent(a.NodeID) {
				return false, errNodeSilent
			}
			if !a.Terminal() {
				return false, nil
			}
		}
		return true, nil
	})
	if errors.Is(err, errNodeSilent) && o.Row.Op.Kind == engine.OpDestroy {
		return nil, nil // its volume is listed as unreachable
	}
	if err != nil {
		return nil, o.unconfirmed(ctx, err, allocs...)
	}
	return allocs, o.missed(ctx, allocs)
}

var errNodeSilent = errors.New("the engine's node does not respond")

// unconfirmed returns the error if it is unknown whether a process has ended; allocs are
// the possible allocations.
func (o *work) unconfirmed(ctx context.Context, err error, allocs ...cluster.Alloc) error {
	timedOut, lost := errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, errStateLost)
	if !timedOut && !lost && !errors.Is(err, errNodeSilent) && !errors.Is(err, errUnproven) {
		return err
	}
	switch {
	case o.Row.Op.Kind == engine.OpRotateKey:
		message := "the engine has not confirmed its new key, and its process may still run; the rotation continues in the background"
		if lost {
			message = "the engine has not confirmed its new key: " + whatToDo
		}
		return &engine.Error{Code: engine.RotationUnconfirmed, Message: message, Err: err}
	case lost && o.Row.Op.Kind == engine.OpStart:
		return &engine.Error{Code: engine.CapacityExhausted, Message: "the engine cannot be started: " + whatToDo, Err: err, RetryAfter: retryCapacity}
	case lost:
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "it cannot be confirmed that the engine's process has ended; the stop is carried out when it can: " + whatToDo, Err: err}
	}
	why := ""
	if slices.ContainsFunc(allocs, func(a cluster.Alloc) bool { return !a.Terminal() && a.Pulling != "" }) {
		why = ", because it is still pulling its image" // Nomad does not cancel a pull
	}
	if o.Row.Op.Kind == engine.OpStart {
		return &engine.Error{Code: engine.CapacityExhausted, Message: "the engine's node does not confirm that the previous process has ended" + why + "; retry later", Err: err, RetryAfter: retryCapacity}
	}
	return &engine.Error{Code: engine.StopUnconfirmed, Message: "the engine's node does not confirm that the process has ended" + why + "; the stop is carried out when it does", Err: err}
}

// NodeSilent reports whether a node does not report to Nomad's servers.
func (s *Scheduler) nodeSilent(nodeID string) bool {
	node, known := s.cluster.Node(nodeID)
	return !known || node.Down
}
