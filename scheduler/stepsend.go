package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// quiesce sets the count of the engine's job to 0, so that its process ends and
// is not started again. Undoing or destroying, it always leaves its mark: where
// the count is 0 already, it is that which moves the index under an owner that
// was paused before its registration.
func (o *operation) quiesce(ctx context.Context) error {
	mark := ""
	if o.row.Op.Undo != "" || o.row.Op.Kind == engine.OpDestroy {
		mark = o.opID + "-end"
	}
	if err := o.letEnd(ctx); err != nil {
		return err
	}
	rest := "" // in what state it is then, for a registry that is lost
	switch o.row.Op.Kind {
	case engine.OpStop:
		rest = string(engine.Stopped)
	case engine.OpSleep:
		rest = string(engine.Sleeping)
	}
	for {
		index, err := o.s.cluster.ScaleToZero(ctx, o.row.JobID(), mark, rest, func() error { return o.fence(ctx) })
		o.quietAt = index
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			if o.row.Op.Undo != "" && o.row.AllocID != "" && o.row.Vanished == nil { // somebody purged the job meanwhile
				o.row.Vanished = &engine.Vanished{AllocID: o.row.AllocID, NodeID: o.row.NodeID, Since: time.Now().UTC()}
			}
			return nil
		case !errors.Is(err, cluster.ErrConflict):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// awaitGone waits until no process of the engine is left, as its node says.
func (o *operation) awaitGone(ctx context.Context) error {
	if err := o.letEnd(ctx); err != nil { // its node may have been silent until now
		return err
	}
	var allocs []cluster.Alloc
	err := o.whileOwned(ctx, func(ctx context.Context) (err error) {
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

// noteSilence says in the row of a running engine that its node is silent, that Nomad
// does not know its volume or that its process crashed, when that is why an operation
// waits: nobody else says so while it is under way.
func (o *operation) noteSilence(ctx context.Context, err error) error {
	kind, reason := o.row.Op.Kind, ""
	switch {
	case errors.Is(err, errNodeSilent):
		reason = engine.ReasonNodeDown
	case errors.Is(err, errStateLost):
		reason = engine.ReasonVolumeUnknown
	case errors.Is(err, errUnproven):
		reason = engine.ReasonCrashed
	}
	if reason == "" || o.row.State != engine.Running || kind != engine.OpStop && kind != engine.OpRotateKey {
		return err
	}
	o.row.State, o.row.Reason = engine.Failed, reason
	id, berr := o.s.begin(ctx, o.row, audit.ActionHealthFailed, actorSystem, map[string]any{"reason": reason})
	if berr != nil {
		o.row.State, o.row.Reason = engine.Running, ""
		return err // it is said at the next try
	}
	began, serr := time.Now(), o.save(ctx)
	o.s.abandon(ctx, id, began, serr)
	if serr != nil {
		return serr
	}
	return err
}

// drainUntil is when an operation gives up waiting for a process, for now. After the
// deadline the caller has been told; each later try waits as long as a process may
// take to end.
func (o *operation) drainUntil() time.Time {
	until := o.row.Op.Deadline
	if later := time.Now().Add(killGrace); o.answeredAlready() && until.Before(later) {
		until = later
	}
	if v := o.row.Vanished; v != nil {
		if later := v.Since.Add(vanishedGrace + killMargin); until.Before(later) {
			until = later
		}
	}
	return until
}

// processesGone waits until every process of the engine that Nomad knows is gone, by
// its word, and returns the allocations. errVanished: the row knows of one that Nomad
// does not know.
func (o *operation) processesGone(ctx context.Context) (allocs []cluster.Alloc, err error) {
	ctx, cancel := context.WithDeadline(ctx, o.drainUntil())
	defer cancel()
	w := o.s.cluster.Watch(o.row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, o.unconfirmed(ctx, err)
	}
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		for _, a := range state.Allocs {
			if o.s.nodeSilent(a.NodeID) {
				return false, errNodeSilent
			}
			if !a.Terminal() {
				return false, nil
			}
		}
		return true, nil
	})
	if errors.Is(err, errNodeSilent) && o.row.Op.Kind == engine.OpDestroy {
		return nil, nil // its volume is listed as unreachable
	}
	if err != nil {
		return nil, o.unconfirmed(ctx, err, allocs...)
	}
	return allocs, o.missed(ctx, allocs)
}

var errNodeSilent = errors.New("the engine's node is silent")

func (o *operation) answeredAlready() bool {
	select {
	case <-o.answered:
		return true
	default:
		return false
	}
}

// unconfirmed is what a caller hears when it is not known that a process ended; allocs
// are those that it may be of.
func (o *operation) unconfirmed(ctx context.Context, err error, allocs ...cluster.Alloc) error {
	timedOut, lost := errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, errStateLost)
	if !timedOut && !lost && !errors.Is(err, errNodeSilent) && !errors.Is(err, errUnproven) {
		return err
	}
	switch {
	case o.row.Op.Kind == engine.OpRotateKey:
		message := "the engine has not confirmed its new key, and its process is not known to be gone; the rotation goes on in the background"
		if lost {
			message = "the engine has not confirmed its new key: " + whatToDo
		}
		return &engine.Error{Code: engine.RotationUnconfirmed, Message: message, Err: err}
	case lost && o.row.Op.Kind == engine.OpStart:
		return &engine.Error{Code: engine.CapacityExhausted, Message: "the engine cannot be started: " + whatToDo, Err: err, RetryAfter: retryCapacity}
	case lost:
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "it cannot be confirmed that the engine's process is gone; the stop is carried out when it can: " + whatToDo, Err: err}
	}
	why := ""
	if slices.ContainsFunc(allocs, func(a cluster.Alloc) bool { return !a.Terminal() && a.Pulling != "" }) {
		why = ", for it is still pulling its image" // which Nomad does not break off
	}
	if o.row.Op.Kind == engine.OpStart {
		return &engine.Error{Code: engine.CapacityExhausted, Message: "the engine's node does not confirm that the process before is gone" + why + "; try again later", Err: err, RetryAfter: retryCapacity}
	}
	return &engine.Error{Code: engine.StopUnconfirmed, Message: "the engine's node does not confirm that the process is gone" + why + "; the stop is carried out when it does", Err: err}
}

// NodeSilent says whether the servers do not hear from a node.
func (s *Scheduler) nodeSilent(nodeID string) bool {
	node, known := s.cluster.Node(nodeID)
	return !known || node.Down
}
