package scheduler

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// closeNode makes Nomad schedule on a node as it is to after its evacuation. After a
// cancellation that is as before.
func (s *Scheduler) closeNode(ctx context.Context, e *registry.Evacuation, outcome string) error {
	switch {
	case e.Found.Drain:
		return s.cluster.DrainAgain(ctx, e.NodeID, e.Found.DrainUntil, e.Found.IgnoreSystemJobs)
	case outcome == registry.EvacuationCancelled && e.Found.Eligible:
		return nil
	}
	return s.cluster.MakeIneligible(ctx, e.NodeID)
}

// endEvacuation writes the outcome of an evacuation.
func (s *Scheduler) endEvacuation(ctx context.Context, e *registry.Evacuation, outcome string) error {
	e.Outcome, e.EndedAt, e.Waits = outcome, time.Now().UTC(), ""
	if err := s.store.PutEvacuation(ctx, e); err != nil {
		return err
	}
	s.log.Info("the evacuation of a node has ended", "node_id", e.NodeID, "outcome", outcome, "failed", len(e.Failures))
	s.noteEvacuating(e)
	return nil
}

// waits reports whether an engine's last move failed a short while ago.
func (v *evacuations) waits(e *registry.Evacuation, engineID string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.lastMove(e, engineID)
	if f.Attempts == 0 {
		return false
	}
	v.failed[engineID] = f
	wait := engine.Doubled(firstMoveRetry, f.Attempts, lastMoveRetry)
	if f.Down {
		wait = engine.Doubled(lastMoveRetry, f.Attempts, lastDownRetry)
	}
	return engine.StillWaits(f.At.Add(wait), time.Now(), lastDownRetry)
}

// broke reports whether an engine was stopped for its last move, which failed for a cause that
// others may have, too.
func (v *evacuations) broke(e *registry.Evacuation, engineID string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.lastMove(e, engineID)
	return f.Down && !f.Own
}

// lastMove returns how an engine's last move failed, by this leader's attempts or by the
// record; zero: it did not. The caller holds the lock.
func (v *evacuations) lastMove(e *registry.Evacuation, engineID string) registry.FailedMove {
	if f, tried := v.failed[engineID]; tried {
		return f
	}
	return e.Failures[engineID]
}

// forgive forgets the failures of before the last request: somebody may have mended their cause.
func (v *evacuations) forgive(e *registry.Evacuation, on []*engine.Row) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asked[e.NodeID] == e.Asked {
		return
	}
	v.asked[e.NodeID] = e.Asked
	for _, row := range on {
		delete(v.failed, row.EngineID)
	}
}

// result notes how a move ended. now is the row after it; nil: it never began.
func (v *evacuations) result(row, now *engine.Row, err error) {
	if err != nil && now == nil && (overtaken(err) || errors.Is(err, registry.ErrConflict)) {
		return // somebody uses it; it is looked at again in a moment
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.failed[row.EngineID] = registry.FailedMove{}
		return
	}
	said := AsError(err)
	v.s.log.Warn("an engine cannot be moved to another node; retrying", "engine_id", row.EngineID, "node_id", row.NodeID, "error", err)
	v.failed[row.EngineID] = registry.FailedMove{
		Code: string(said.Code), Message: said.Message, At: time.Now().UTC().Truncate(time.Second), Attempts: v.failed[row.EngineID].Attempts + 1,
		Down: now != nil && now.Reason == operation.ReasonNotMoved, Own: unreadableBrain(err),
	}
}

// note writes what has failed into the record, and what the evacuation waits for.
func (v *evacuations) note(ctx context.Context, e *registry.Evacuation, on []*engine.Row, waits string) error {
	failures := map[string]registry.FailedMove{}
	v.mu.Lock()
	for _, row := range on {
		if f := v.lastMove(e, row.EngineID); f.Attempts > 0 {
			failures[row.EngineID] = f
		}
	}
	v.mu.Unlock()
	if waits == e.Waits && maps.Equal(failures, e.Failures) {
		return nil
	}
	e.Failures, e.Waits = failures, waits
	return v.s.store.PutEvacuation(ctx, e)
}

// prune deletes old snapshots of an engine that was moved: its product may have no schedule,
// which would do it.
func (v *evacuations) prune(ctx context.Context, row *engine.Row) {
	p, err := v.s.store.Product(ctx, row.ProductID)
	if err == nil {
		err = v.s.pruneSnapshots(ctx, row.EngineID, row.Snapshot.ID, keepOf(p.Policy))
	}
	if err != nil && ctx.Err() == nil {
		v.s.log.Warn("old snapshots of an engine that was moved cannot be deleted", "engine_id", row.EngineID, "error", err)
	}
}

// cancel ends an evacuation when no engine is on its way any more. Moves that have not stopped
// their engines are undone: they may wait for an hour for their turn.
func (v *evacuations) cancel(ctx context.Context, e *registry.Evacuation, on []*engine.Row) error {
	var errs []error
	under := false
	for _, row := range on {
		if !moving(row) {
			continue
		}
		under = true
		if yields(row) && row.NodeID == e.NodeID { // not one that comes from another node
			errs = append(errs, v.s.interrupt(ctx, row, cancelled))
		}
	}
	if under {
		return errors.Join(errs...)
	}
	return v.end(ctx, e, registry.EvacuationCancelled)
}
