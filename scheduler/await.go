package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// awaitOperation waits for the end of the row's operation, on this replica or another, and
// returns the error of a failed boot.
func (s *Scheduler) awaitOperation(ctx context.Context, row *engine.Row) error {
	if o := s.ops.Running(row.ProductID, row.UserID); o != nil && o.ID == row.Op.ID {
		_, err := o.Wait(ctx)
		switch {
		case errors.As(err, new(*operation.UnderWay)):
			return err
		case err != nil && overtaken(err):
			return nil
		case err != nil && row.Op.Kind == engine.OpSleep:
			// The operation continues: the engine does not run, and cannot be woken yet.
			return engine.BusyWith(row.Op.Kind)
		}
		return err
	}
	if row.Op.Kind == engine.OpSleep {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.ops.Limit(row.Op.Kind))
		defer cancel()
	}
	for pause.For(ctx, pollEvery) {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return nil // the caller reads the row again and decides
		case err != nil:
			return err
		case now.Op != nil && now.Op.ID == row.Op.ID:
			if err := operation.Impatient(ctx, now); err != nil {
				return err
			}
			continue
		case now.Op == nil && now.State == engine.Failed:
			return failedBoot(now.Reason)
		}
		return nil
	}
	return engine.BusyWith(row.Op.Kind)
}

// failedBoot returns the error of a boot that another replica ran.
func failedBoot(reason string) error {
	switch reason {
	case engine.ReasonBootTimeout:
		return engine.Errorf(engine.BootTimeout, "the engine did not report that it is healthy in time")
	case engine.ReasonPull:
		return engine.Errorf(engine.BootTimeout, "the engine's node is still pulling its image")
	}
	return engine.Errorf(engine.EngineBootFailed, "the engine could not boot: %s", reason)
}

// join waits for an operation in progress, on this replica or another, that leads to a
// state.
func (s *Scheduler) join(ctx context.Context, row *engine.Row, to engine.State) (*engine.Row, error) {
	if o := s.ops.Running(row.ProductID, row.UserID); o != nil && o.ID == row.Op.ID {
		return o.Wait(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, s.ops.Longest())
	defer cancel()
	for pause.For(ctx, pollEvery) {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case err != nil:
			return nil, gone(err)
		case now.Op != nil && now.Op.ID == row.Op.ID:
			if err := operation.Impatient(ctx, now); err != nil {
				return nil, err
			}
			continue
		case now.Op == nil && now.State == to:
			return now, nil
		}
		break
	}
	return nil, engine.BusyWith(row.Op.Kind)
}

// awaitDestroyed waits until a row that is being destroyed is deleted. If that is a
// provision that removes itself, its own error does not concern this caller.
func (s *Scheduler) awaitDestroyed(ctx context.Context, row *engine.Row) (string, error) {
	if o := s.ops.Running(row.ProductID, row.UserID); o != nil && o.Began.Kind == engine.OpDestroy {
		if _, err := o.Wait(ctx); err != nil {
			return "", err
		}
		return row.EngineID, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.ops.Limit(engine.OpDestroy))
	defer cancel()
	for {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case errors.Is(err, registry.ErrNotFound) || err == nil && now.EngineID != row.EngineID:
			return row.EngineID, nil
		case err != nil && ctx.Err() == nil:
			return "", err
		case err == nil && now.Op != nil && now.Op.Owner == s.replica.ID:
			// A provision that was removing itself may have been cancelled for a destroy.
			if err := s.ops.Resume(ctx, now); err != nil && ctx.Err() == nil {
				return "", err
			}
		}
		if err == nil {
			if err := operation.Impatient(ctx, now); err != nil {
				return "", err
			}
		}
		if !pause.For(ctx, pollEvery) {
			return "", engine.BusyWith(engine.OpDestroy)
		}
	}
}

// gone converts "no row" into the error for a caller who saw one.
func gone(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return engine.Errorf(engine.EngineNotFound, "the engine has been destroyed meanwhile")
	}
	return err
}
