package operation

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Save writes the row. It recognises a write whose response was lost.
func (o *Operation) Save(ctx context.Context) error {
	err := o.m.Store.Update(ctx, o.Row)
	if !errors.Is(err, registry.ErrConflict) {
		return err
	}
	now, err := o.m.Store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
	if err == nil && sameWrite(now, o.Row) {
		o.Row = now
		return nil
	}
	return o.Lost(ctx, now, err)
}

// Fence verifies that this replica still owns the operation. Calls that the row cannot
// guard are made in this order: read an index, fence, then write by check-and-set at that
// index. A replica that takes over the operation changes the index before it closes the
// operation, so a replica that was paused between fence and write writes nothing.
func (o *Operation) Fence(ctx context.Context) error {
	err := o.m.Store.Verify(ctx, o.Row)
	if errors.Is(err, registry.ErrConflict) {
		now, err := o.m.Store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
		return o.Lost(ctx, now, err)
	}
	if err == nil {
		HitStep(o.Row.Op, AtFenced)
	}
	return err
}

// WhileOwned runs a wait that ends when another operation or replica takes the row.
func (o *Operation) WhileOwned(ctx context.Context, wait func(context.Context) error) error {
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup
	watching.Go(func() { o.WatchRow(watched, cancel) })
	err := wait(watched)
	taken := errors.Is(context.Cause(watched), ErrSuperseded) && ctx.Err() == nil
	cancel(nil)
	watching.Wait()
	if !taken {
		return err
	}
	now, err := o.m.Store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
	return o.Lost(ctx, now, err)
}

// WatchRow cancels a wait when another operation or replica takes the row: a destroy on
// another replica waits for that.
func (o *Operation) WatchRow(ctx context.Context, cancel context.CancelCauseFunc) {
	productID, userID, index := o.Row.ProductID, o.Row.UserID, o.Row.Index
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		row, err := o.m.Store.Engine(ctx, productID, userID)
		if errors.Is(err, registry.ErrNotFound) || err == nil && row.Index != index {
			cancel(ErrSuperseded)
			return
		}
	}
}

// Lost returns what it means that the row differs from this operation's last write: now and
// err are the result of reading it.
func (o *Operation) Lost(ctx context.Context, now *engine.Row, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return ErrTakenOver
	case err != nil:
		return err
	case now.Op != nil && now.Op.ID == o.ID && now.Op.Owner == o.m.Replica:
		o.Row = now
		return ErrReread
	case now.Op != nil && now.Op.Supersedes == o.m.Replica:
		o.acknowledge(ctx, now)
		return ErrSuperseded
	}
	return ErrTakenOver
}

// sameWrite reports whether the stored row is the intended one.
func sameWrite(stored, wanted *engine.Row) bool {
	if stored.EngineID != wanted.EngineID || stored.State != wanted.State || (stored.Op == nil) != (wanted.Op == nil) {
		return false
	}
	if stored.Op == nil {
		return stored.KeyVersion == wanted.KeyVersion && stored.AllocID == wanted.AllocID
	}
	return stored.Op.ID == wanted.Op.ID && stored.Op.Owner == wanted.Op.Owner && stored.Op.Step == wanted.Op.Step &&
		stored.Op.Kind == wanted.Op.Kind && stored.Op.Undo == wanted.Op.Undo
}

// acknowledge records, for a destroy that interrupted this replica's operation, that this
// replica will not touch the engine any more.
func (o *Operation) acknowledge(ctx context.Context, row *engine.Row) {
	row.Op.Supersedes = ""
	if err := o.m.Store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
		o.Log.Warn("cannot acknowledge that the engine is being destroyed", "error", err)
	}
}
