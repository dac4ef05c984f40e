package operation

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/internal/traces"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// attempt runs the steps from the row's current one, and writes the row after each. A lost
// session is no error for a while: once there is a new session, the row shows who owns the
// operation.
func (o *Operation) attempt(ctx context.Context) error {
	var lost time.Time // when the session was first missing
	for {
		err := o.advance(ctx)
		if !errors.Is(err, registry.ErrNoSession) {
			lost = time.Time{}
		} else if lost.IsZero() {
			lost = time.Now()
		}
		switch {
		case errors.Is(err, ErrReread) && ctx.Err() == nil:
			o.unsaved, o.undone = false, o.Row.Op.Undo != "" // the stored row decides
		case !lost.IsZero() && time.Since(lost) < sessionGrace && pause.For(ctx, firstRetry):
		case moved(err) && o.Row.Op != nil && time.Now().Before(o.Row.Op.Deadline) && pause.For(ctx, firstRetry):
			// Often it was this operation's own write, whose response was lost. The row is
			// read again, and no caller gets ENGINE_BUSY for an operation that continues.
		case err != nil:
			return err
		case o.Removed || o.Row.Op == nil && !o.unsaved:
			return nil
		}
	}
}

// moved reports whether an error is a failed check-and-set in Nomad or Vault.
func moved(err error) bool {
	return errors.Is(err, cluster.ErrConflict) || errors.Is(err, secrets.ErrConflict)
}

// advance runs the row's step and writes the row, if it has an operation.
func (o *Operation) advance(ctx context.Context) error {
	if o.unsaved {
		if err := o.write(ctx); err != nil {
			return err
		}
	}
	if o.Row.Op == nil {
		return nil
	}
	op := o.Row.Op
	st, next, known := o.m.Plans.find(op)
	if !known {
		return engine.Errorf(engine.Internal, "the operation is at a step that this version of the service does not know")
	}
	at := *op // the step may change where the row is
	HitStep(&at, AtBefore)
	began := time.Now()
	stepping := ctx
	if st.FailFast && op.Undo == "" {
		stepping = link.FailFast(ctx)
	}
	stepping, span := traces.Start(stepping, st.Name)
	err := st.Do(stepping, o.work)
	if err != nil && !errors.Is(err, ErrDetour) && !errors.Is(err, ErrRelocated) {
		span.Fail(string(o.m.Owner.AsError(err).Code))
	}
	span.End()
	o.timings.Since(st.Name, began)
	switch {
	case errors.Is(err, ErrDetour):
		o.unsaved = true
		return nil
	case errors.Is(err, ErrRelocated):
		HitStep(&at, AtSaved)
		return nil
	case err != nil:
		return err
	}
	HitStep(&at, AtDone)
	switch {
	case o.Removed:
		return nil
	case next == "":
		if op.Undo != "" {
			o.failed = &engine.Error{Code: engine.Code(op.Undo), Message: op.Message}
		}
		Close(o.m.Plans, o.m.Restart, o.Row, time.Now().UTC())
	default:
		o.Row.Op.Step = next
	}
	o.unsaved = true
	if err := o.write(ctx); err != nil {
		return err
	}
	HitStep(&at, AtSaved)
	return nil
}

// write writes a row after a step.
func (o *Operation) write(ctx context.Context) error {
	began := time.Now()
	err := o.Save(ctx)
	o.writing += time.Since(began)
	if err != nil {
		return err
	}
	o.unsaved = false
	return nil
}
