package operation

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

// Between the write of an operation into its row and its launch, every replica can read it
// but none runs it. Therefore its launch is reserved before the write, so that nothing in
// this replica treats it as abandoned meanwhile.

// Reserve reserves an operation's launch until done is called. under is not nil if the
// launch is already reserved: it is closed at the end of that reservation.
func (m *Machine) Reserve(opID string) (done func(), under <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.launching[opID]; other != nil {
		return func() {}, other
	}
	mine := make(chan struct{})
	m.launching[opID] = mine
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.launching, opID)
		close(mine)
	}), nil
}

// Resume runs an operation that this replica owns but does not run.
func (m *Machine) Resume(ctx context.Context, row *engine.Row) error {
	done, under := m.Reserve(row.Op.ID)
	defer done()
	if under != nil || m.Running(row.ProductID, row.UserID) != nil {
		return nil
	}
	// The row is read after it was found not to run, because it may have ended since.
	now, err := m.Store.Engine(ctx, row.ProductID, row.UserID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case err != nil:
		return err
	case now.Op == nil || now.Op.ID != row.Op.ID || now.Op.Owner != m.Replica:
		return nil
	}
	m.Log.Info("running an abandoned operation of this replica", "engine_id", now.EngineID, "op", string(now.Op.Kind))
	m.Launch(now)
	return nil
}

// ErrUnanswered means that it is unknown whether an operation was written. This replica
// watches its row, and completes its audit row when it is known.
var ErrUnanswered = errors.New("scheduler: the write of an operation got no response")

// Unanswered starts watching a row if the error of its write leaves open whether the write
// was made. Any other error is returned unchanged.
func (m *Machine) Unanswered(row *engine.Row, err error) error {
	if !errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	m.adopt(row, err)
	return fmt.Errorf("%w: %w", ErrUnanswered, err)
}

// adopt watches a row after a write without a response. If the write was made, this replica
// owns an operation that nobody runs: it runs it, and the operation completes its audit
// row. If the write has not appeared after StrayAfter, it was not made, and the audit row
// is completed with the error that the caller got (told); nil: this is not the caller's
// operation.
func (m *Machine) adopt(row *engine.Row, told error) {
	row = row.Clone()
	m.Background(func(ctx context.Context) {
		for missed := (time.Time{}); pause.For(ctx, time.Second); {
			now, err := m.Store.Engine(ctx, row.ProductID, row.UserID)
			switch {
			case err != nil && !errors.Is(err, registry.ErrNotFound):
				continue
			case err == nil && now.Op != nil && now.Op.ID == row.Op.ID:
				if m.Resume(ctx, now) == nil {
					return
				}
				continue
			case missed.IsZero():
				missed = time.Now()
			}
			if told == nil || time.Since(missed) > StrayAfter {
				break
			}
		}
		if told != nil && ctx.Err() == nil {
			m.Owner.Abandon(ctx, row.Op.AuditID, row.Op.BeganAt, told)
		}
	})
}
