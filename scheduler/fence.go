package scheduler

import (
	"context"
	"errors"
	"sync"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// save writes the row. A write whose answer was lost is recognised.
func (o *operation) save(ctx context.Context) error {
	err := o.s.store.Update(ctx, o.row)
	if !errors.Is(err, registry.ErrConflict) {
		return err
	}
	now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
	if err == nil && sameWrite(now, o.row) {
		o.row = now
		return nil
	}
	return o.lost(ctx, now, err)
}

// fence makes sure that the operation is still this replica's. Calls that the
// row cannot guard are made in this order: read an index, fence, then write by
// check-and-set at that index. Whoever takes the operation over moves the index
// before the operation is closed, so that a replica that was paused between the
// last two writes nothing.
func (o *operation) fence(ctx context.Context) error {
	kind, step := o.row.Op.Kind, o.row.Op.Step
	err := o.s.store.Verify(ctx, o.row)
	if errors.Is(err, registry.ErrConflict) {
		now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		return o.lost(ctx, now, err)
	}
	if err == nil {
		hitStep(kind, step, atFenced)
	}
	return err
}

// whileOwned runs a wait, which ends when somebody else takes the row.
func (o *operation) whileOwned(ctx context.Context, wait func(context.Context) error) error {
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup
	watching.Go(func() { o.watchRow(watched, cancel) })
	err := wait(watched)
	taken := errors.Is(context.Cause(watched), errSuperseded) && ctx.Err() == nil
	cancel(nil)
	watching.Wait()
	if !taken {
		return err
	}
	now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
	return o.lost(ctx, now, err)
}

// lost says what it means that the row is not the one that this operation wrote
// last: now and err are what reading it gave.
func (o *operation) lost(ctx context.Context, now *engine.Row, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return errTakenOver
	case err != nil:
		return err
	case now.Op != nil && now.Op.ID == o.opID && now.Op.Owner == o.s.replica.ID:
		o.row = now
		return errReread
	case now.Op != nil && now.Op.Supersedes == o.s.replica.ID:
		o.acknowledge(ctx, now)
		return errSuperseded
	}
	return errTakenOver
}

// sameWrite says whether the stored row is the one that was to be written.
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

// acknowledge tells a destroy that cut this replica's operation short that
// nothing more will be done to the engine from here.
func (o *operation) acknowledge(ctx context.Context, row *engine.Row) {
	row.Op.Supersedes = ""
	if err := o.s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
		o.log.Warn("cannot acknowledge that the engine is being destroyed", "error", err)
	}
}
