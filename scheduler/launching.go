package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// Between the write of an operation into its row and its launch, everybody can read it
// and nobody runs it. Whoever writes one reserves its launch, so that nobody in this replica
// takes it for abandoned meanwhile.

// reserveLaunch reserves an operation's launch until done is called. under is not nil where
// somebody else has it: it is closed when that one is done.
func (s *Scheduler) reserveLaunch(opID string) (done func(), under <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.launching[opID]; other != nil {
		return func() {}, other
	}
	mine := make(chan struct{})
	s.launching[opID] = mine
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.launching, opID)
		close(mine)
	}), nil
}

// resume runs the operation of a row that is this replica's own and that nobody runs.
func (s *Scheduler) resume(ctx context.Context, row *engine.Row) error {
	done, under := s.reserveLaunch(row.Op.ID)
	defer done()
	if under != nil || s.running(row.ProductID, row.UserID) != nil {
		return nil
	}
	// Read after nobody ran it: else it may have ended since.
	now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case err != nil:
		return err
	case now.Op == nil || now.Op.ID != row.Op.ID || now.Op.Owner != s.replica.ID:
		return nil
	}
	s.log.Info("running an operation of this replica that nobody ran", "engine_id", now.EngineID, "op", string(now.Op.Kind))
	s.launch(now)
	return nil
}

// errUnanswered: whether an operation was written is not known. This replica looks
// after its row, and completes its audit row when it is known.
var errUnanswered = errors.New("scheduler: the write of an operation was not answered")

// unanswered has a row looked after whose write failed of an error that leaves open
// whether it was done. Every other error is returned as it is.
func (s *Scheduler) unanswered(row *engine.Row, err error) error {
	if !errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	s.adopt(row, err)
	return fmt.Errorf("%w: %w", errUnanswered, err)
}

// adopt looks after a row whose write was not answered: should it have been
// written, this replica owns an operation that nobody runs. The operation then
// completes its audit row. A write that has not come to be for strayAfter was not
// done: then the audit row says what its caller was told; nil: it is not this one's.
func (s *Scheduler) adopt(row *engine.Row, told error) {
	row = row.Clone()
	s.background(func(ctx context.Context) {
		for missed := (time.Time{}); pause.For(ctx, time.Second); {
			now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
			switch {
			case err != nil && !errors.Is(err, registry.ErrNotFound):
				continue
			case err == nil && now.Op != nil && now.Op.ID == row.Op.ID:
				if s.resume(ctx, now) == nil {
					return
				}
				continue
			case missed.IsZero():
				missed = time.Now()
			}
			if told == nil || time.Since(missed) > strayAfter {
				break
			}
		}
		if told != nil && ctx.Err() == nil {
			s.abandon(ctx, row.Op.AuditID, row.Op.BeganAt, told)
		}
	})
}
