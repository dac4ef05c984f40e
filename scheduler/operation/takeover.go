package operation

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// recoverEvery is the interval of checks for operations of dead owners. A check needs
	// no call while every operation in the view runs here.
	recoverEvery = 3 * time.Second
	// pollEvery is the interval of checks for conditions without a notification.
	pollEvery = 50 * time.Millisecond
	// StrayAfter is how long this replica may own an operation without running it before
	// the operation counts as forgotten: longer than the response to its first write can
	// take.
	StrayAfter = 10 * time.Second
)

// Run takes over the operations of dead owners and finishes or undoes them, at the start
// and from then on.
func (m *Machine) Run(ctx context.Context) {
	select { // operations left by a crash are searched for at once
	case <-ctx.Done():
	case <-m.Rows.Synced():
	}
	for !m.Owner.MayTakeOver() && pause.For(ctx, pollEvery) {
	}
	strays := strays{}
	for ctx.Err() == nil {
		if m.Owner.MayTakeOver() {
			if err := m.recoverOnce(ctx, strays); err != nil && ctx.Err() == nil {
				m.Log.Warn("cannot check for abandoned operations; retrying", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(recoverEvery):
		}
	}
}

// strays are operations that this replica owns but does not run, with the time when each
// was first seen. Their write was given up as lost, but took effect later, for example
// because a paused Consul agent resumed.
type strays map[string]time.Time

// forgotten reports whether one of this replica's own operations was seen without running
// for long enough.
func (st strays) forgotten(opID string) bool {
	since, seen := st[opID]
	if !seen {
		st[opID] = time.Now()
		return false
	}
	return time.Since(since) > StrayAfter
}

// recoverOnce checks the rows in the view. The view is only a hint, because an operation is
// taken over by check-and-set on exactly the row that was seen. Operations that only a
// newer version can continue are skipped.
func (m *Machine) recoverOnce(ctx context.Context, strays strays) error {
	var busy []*engine.Row
	for _, row := range m.Rows.All() {
		if row.Op != nil && m.Plans.Knows(row.Op) && m.Running(row.ProductID, row.UserID) == nil {
			busy = append(busy, row)
		}
	}
	if len(busy) == 0 {
		clear(strays)
		return nil
	}
	if !m.Owner.Whole(ctx) {
		return nil
	}
	// Rows are read before replicas, because an owner has its key before it writes a row.
	replicas, err := m.Store.Replicas(ctx)
	if err != nil {
		return err
	}
	idle := map[string]bool{}
	for _, row := range busy {
		if row.Op.Supersedes == m.Replica {
			// An interrupted operation of this replica does not run: its acknowledgement
			// was lost, or it never began.
			if idle[row.Op.ID] = true; strays.forgotten(row.Op.ID) {
				row := row.Clone()
				row.Op.Supersedes = ""
				if err := m.Store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
					return err
				}
			}
			continue
		}
		if own := row.Op.Owner == m.Replica; own {
			if idle[row.Op.ID] = true; !strays.forgotten(row.Op.ID) {
				continue
			}
		} else if replicas[row.Op.Owner] {
			continue
		}
		if err := m.takeOver(ctx, row.Clone()); err != nil {
			return err
		}
	}
	maps.DeleteFunc(strays, func(opID string, _ time.Time) bool { return !idle[opID] })
	return nil
}

// takeOver makes this replica the owner of an operation that nobody runs, and launches it.
func (m *Machine) takeOver(ctx context.Context, row *engine.Row) error {
	launched, under := m.Reserve(row.Op.ID)
	defer launched()
	if under != nil {
		return nil
	}
	before := row.Op.Owner
	row.Op.Owner = m.Replica
	row.Op.Deadline = engine.Within(row.Op.Deadline, time.Now().UTC(), max(m.Limit(row.Op.Kind), m.BootTimeout))
	err := m.Store.Update(ctx, row)
	if errors.Is(err, registry.ErrConflict) {
		return nil // another replica was faster
	}
	if errors.Is(err, registry.ErrUnavailable) {
		m.adopt(row, nil) // it may have been written
	}
	if err != nil {
		return err
	}
	m.Log.Info("taking over an operation", "engine_id", row.EngineID, "op", string(row.Op.Kind), "step", row.Op.Step, "from", before)
	m.Launch(row)
	return nil
}
