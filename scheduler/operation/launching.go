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

// Between the write of an operation into its row and its launch, everybody can read it
// and nobody runs it. Whoever writes one reserves its launch, so that nobody in this replica
// takes it for abandoned meanwhile.

// Reserve reserves an operation's launch until done is called. under is not nil where
// somebody else has it: it is closed when that one is done.
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

// Resume runs the operation of a row that is this replica's own and that nobody runs.
func (m *Machine) Resume(ctx context.Context, row *engine.Row) error {
	done, under := m.Reserve(row.Op.ID)
	defer done()
	if under != nil || m.Running(row.ProductID, row.UserID) != nil {
		return nil
	}
	// Read after nobody ran it: else it may have ended since.
	now, err := m.Store.Engine(ctx, row.ProductID, row.UserID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case err != nil:
		return err
	case now.Op == nil || now.Op.ID != row.Op.ID || now.Op.Owner != m.Replica:
		return nil
	}
	m.Log.Info("running an operation of this replica that nobody ran", "engine_id", now.EngineID, "op", string(now.Op.Kind))
	m.Launch(now)
	return nil
}

// ErrUnanswered says that it is not known whether an operation was written. This replica looks
// after its row, and completes its audit row when it is known.
var ErrUnanswered = errors.New("scheduler: the write of an operation was not answered")

// Unanswered has a row looked after whose write failed of an error that leaves open
// whether it was done. Every other error is returned as it is.
func (m *Machine) Unanswered(row *engine.Row, err error) error {
	if !errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	m.adopt(row, err)
	return fmt.Errorf("%w: %w", ErrUnanswered, err)
}

// adopt looks after a row whose write was not answered: should it have been
// written, this replica owns an operation that nobody runs. The operation then
// completes its audit row. A write that has not come to be for StrayAfter was not
// done: then the audit row says what its caller was told; nil: it is not this one's.
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
