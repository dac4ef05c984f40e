package operation

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// answer tells those who wait, once, and completes the audit row with what they
// hear, if that is this operation's to say.
func (o *Operation) answer(ctx context.Context, err error) {
	if !o.recorded && !errors.Is(err, ErrTakenOver) {
		o.recorded = true
		if o.Told() {
			err = o.err
		}
		o.m.Owner.Record(ctx, o.work, err)
	}
	o.tell(err)
}

// refuse tells of an error after which the operation goes on, and writes it into
// the audit row, while what is stored is surely this operation as it is here.
// Otherwise another replica may take over what is stored and end it differently:
// then that one completes the row, and who waits here hears only that the end is
// open.
func (o *Operation) refuse(ctx context.Context, err error) {
	if o.Told() {
		return
	}
	if !o.unsaved && o.m.Store.Verify(ctx, o.Row) == nil {
		o.recorded = true
		o.m.Owner.Record(ctx, o.work, err)
	} else if o.waitsForUndo(err) {
		err = elsewhere(err)
	}
	o.tell(err)
}

// tell tells those who wait, once. The audit row is left to whoever finishes
// the operation.
func (o *Operation) tell(err error) {
	if o.Told() {
		return
	}
	o.result, o.err = o.Row.Clone(), err
	close(o.Answered)
}

// Wait returns what the operation answers.
func (o *Operation) Wait(ctx context.Context) (*engine.Row, error) {
	if o == nil {
		return nil, &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is stopping; try again", RetryAfter: engine.RetryBackend}
	}
	over, stop := impatience(ctx)
	defer stop()
	for {
		select {
		case <-o.Answered:
			switch {
			case errors.Is(o.err, ErrTakenOver):
				return nil, elsewhere(o.err)
			case errors.Is(o.err, ErrSuperseded):
				return nil, engine.BusyWith(engine.OpDestroy)
			}
			return o.result, o.err
		case <-over:
			row, err := o.m.Store.Engine(ctx, o.productID, o.userID)
			if errors.Is(err, registry.ErrNotFound) {
				over = nil // it is about to be answered
				continue
			}
			if err != nil {
				return nil, err
			}
			return nil, &UnderWay{row}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// elsewhere is what a caller hears of an operation whose end another replica may
// decide.
func elsewhere(err error) *engine.Error {
	return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica cannot finish the operation now; it goes on, here or on another one: ask for the engine, or try again", Err: err, RetryAfter: engine.RetryBackend}
}

// waitsForUndo says whether the caller's answer promises that the operation
// left nothing behind or at rest.
func (o *Operation) waitsForUndo(err error) bool {
	switch o.m.Owner.AsError(err).Code {
	case engine.BackendUnavailable, engine.BackendError, engine.Internal:
		return false
	}
	return true
}

// Told says whether those who wait were told.
func (o *Operation) Told() bool {
	select {
	case <-o.Answered:
		return true
	default:
		return false
	}
}
