package operation

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// answer sends the result to all waiting callers, once, and completes the audit row with
// it, if this operation may do that.
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

// refuse sends the waiting callers an error after which the operation continues, and
// records it in the audit row, but only if the stored operation is certainly the one here.
// Otherwise another replica may take over the stored one and end it differently. Then that
// replica completes the row, and the callers here only learn that the result is unknown.
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

// tell sends the result to all waiting callers, once. The replica that ends the operation
// completes the audit row.
func (o *Operation) tell(err error) {
	if o.Told() {
		return
	}
	o.result, o.err = o.Row.Clone(), err
	if err != nil {
		o.span.Fail(string(o.m.Owner.AsError(err).Code))
		o.outcome(time.Time{}, err)
	}
	close(o.Answered)
}

// Wait waits for the end of the operation and returns its result.
func (o *Operation) Wait(ctx context.Context) (*engine.Row, error) {
	if o == nil {
		return nil, &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is stopping; retry", RetryAfter: engine.RetryBackend}
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
				over = nil // the result is about to be sent
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

// elsewhere returns the error for a caller of an operation that another replica may end.
func elsewhere(err error) *engine.Error {
	return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica cannot finish the operation now, and it continues here or on another replica: read the engine's state, or retry", Err: err, RetryAfter: engine.RetryBackend}
}

// waitsForUndo reports whether an error promises that the operation left nothing behind, or
// the engine as before.
func (o *Operation) waitsForUndo(err error) bool {
	switch o.m.Owner.AsError(err).Code {
	case engine.BackendUnavailable, engine.BackendRefused, engine.BackendError, engine.Internal:
		return false
	}
	return true
}

// Told reports whether the waiting callers have the result.
func (o *Operation) Told() bool {
	select {
	case <-o.Answered:
		return true
	default:
		return false
	}
}
