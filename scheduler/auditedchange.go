package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// auditedChange makes a change of the registry between beginning and completing its audit row.
// It sets the row's time and request. made reads whether the change was made, for a write whose
// response is lost.
func (s *Scheduler) auditedChange(ctx context.Context, entry audit.Entry, change func() error, made func(context.Context) (bool, error)) error {
	began := time.Now()
	entry.Timestamp, entry.RequestID = began.UTC(), operation.RequestID(ctx)
	id, err := s.audit.Begin(ctx, entry)
	if err != nil {
		return err
	}
	err = change()
	if errors.Is(err, registry.ErrUnavailable) && !errors.Is(err, link.ErrAway) {
		// Its response was lost: it may have been made, or may still be made.
		if s.ops.Background(func(ctx context.Context) { s.settleChange(ctx, id, began, err, made) }) {
			return err
		}
	}
	s.abandon(ctx, id, began, err)
	return err
}

// settleChange completes the audit row of a change whose write got no response: as done when
// it turns out to be made, or with the error that the caller got (told) if it is not made for
// operation.StrayAfter.
func (s *Scheduler) settleChange(ctx context.Context, id int64, began time.Time, told error, made func(context.Context) (bool, error)) {
	for missed := (time.Time{}); pause.For(ctx, time.Second); {
		is, err := made(ctx)
		switch {
		case err != nil:
			continue
		case is:
			s.abandon(ctx, id, began, nil)
			return
		case missed.IsZero():
			missed = time.Now()
		case time.Since(missed) > operation.StrayAfter:
			s.abandon(ctx, id, began, told)
			return
		}
	}
}
