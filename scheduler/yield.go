package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// yields reports whether a row has a snapshot that nobody asked for, or a move that has not
// changed the engine yet. No call waits for one: the transfer of a large brain takes minutes.
func yields(row *engine.Row) bool {
	op := row.Op
	switch {
	case op == nil:
		return false
	case op.Kind == engine.OpMove:
		return !op.Restoring.Ended
	}
	return op.Kind == engine.OpSnapshot && op.Taking != nil && op.Taking.Trigger == engine.TriggerSchedule
}

// yield lets the replica that carries such an operation out undo it, and waits for that. It is
// carried out later.
func (s *Scheduler) yield(ctx context.Context, row *engine.Row) error {
	opID := row.Op.ID
	for {
		if row.Op.Undo == "" {
			row = row.Clone()
			row.Op.Undo, row.Op.Message = string(engine.EngineBusy), "it gave way to a call"
			row.Op.Step = plans.Undo[row.Op.Kind][0].Name
			// Its owner notices that the row has changed, and continues as the row says.
			if err := s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
				return err
			}
		}
		if !pause.For(ctx, pollEvery) {
			return ctx.Err()
		}
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		if errors.Is(err, registry.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if now.Op == nil || now.Op.ID != opID {
			return nil
		}
		row = now
	}
}
