package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// yieldsWithin is how long even an impatient caller waits for such an operation to give way:
// usually that takes a second or two, and then the caller's own can begin.
const yieldsWithin = 5 * time.Second

// yields reports whether a row has an operation that nobody asked for: a snapshot of the
// schedule, a drill, or a move that has not changed the engine yet. No call waits for one: the
// transfer of a large brain takes minutes.
func yields(row *engine.Row) bool {
	op := row.Op
	switch {
	case op == nil:
		return false
	case op.Kind == engine.OpDrill:
		return true
	case op.Kind == engine.OpMove:
		return !op.Restoring.Ended
	}
	return op.Kind == engine.OpSnapshot && op.Taking != nil && op.Taking.Trigger == engine.TriggerSchedule
}

// Why such an operation is undone.
const (
	gaveWay   = "it gave way to a call"
	cancelled = "the evacuation of the node was cancelled"
)

// yield lets the replica that runs such an operation undo it, and waits for that. It is
// begun again later. ENGINE_BUSY: the caller does not want to wait as long.
func (s *Scheduler) yield(ctx context.Context, row *engine.Row) error {
	opID, began := row.Op.ID, time.Now()
	for {
		if err := s.interrupt(ctx, row, gaveWay); err != nil {
			return err
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
		if now.Op == nil || now.Op.ID != opID || !yields(now) {
			return nil
		}
		row = now
		if operation.Impatient(ctx, now) != nil && time.Since(began) > yieldsWithin {
			return engine.BusyWith(now.Op.Kind) // the caller's own operation has not begun
		}
	}
}

// interrupt writes into the row of such an operation that it is undone, unless it is already.
// Its owner notices that the row has changed, and continues as the row says.
func (s *Scheduler) interrupt(ctx context.Context, row *engine.Row, why string) error {
	if row.Op.Undo != "" {
		return nil
	}
	row = row.Clone()
	row.Op.Undo, row.Op.Message = string(engine.EngineBusy), why
	row.Op.Step = plans.Undo[row.Op.Kind][0].Name
	if err := s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
		return err
	}
	return nil
}
