package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// This file returns keys to callers while a key is being rotated. Most rotations end in a
// moment. An engine that does not accept its new key keeps the old one, and so do its
// users, until it is stopped or started.

const (
	// rotationPatience is how long an admit waits for a rotation before it checks which key
	// the engine accepts.
	rotationPatience = 5 * time.Second
	// askAgain is the interval of such checks.
	askAgain = time.Second
	// giveUpWithin limits the wait until a rotation ends on request: its owner reads the
	// row once per second.
	giveUpWithin = 15 * time.Second
)

// unconfirmed reports whether a row's operation is a rotation whose caller was told that it
// is not confirmed.
func unconfirmed(row *engine.Row) bool {
	return row.Op != nil && row.Op.Kind == engine.OpRotateKey && (row.State != engine.Running || time.Now().After(row.Op.Deadline))
}

// rotates says whether a row's key is being rotated.
func rotates(row *engine.Row) bool {
	return row.Op != nil && row.Op.Kind == engine.OpRotateKey && row.URL != ""
}

// awaitRotation waits for the end of the row's rotation. "": it has ended, and the row must
// be read again. Otherwise the rotation takes long, and the engine accepts the returned key
// meanwhile. ROTATION_UNCONFIRMED: it accepts none.
func (s *Scheduler) awaitRotation(ctx context.Context, row *engine.Row) (key string, err error) {
	op := row.Op
	began := time.Now()
	patient := engine.Within(op.BeganAt.Add(rotationPatience), began, rotationPatience)
	until := engine.Within(op.Deadline, began, s.ops.Limit(engine.OpRotateKey))
	if soonest := began.Add(rotationPatience); until.Before(soonest) {
		until = soonest
	}
	if o := s.ops.Running(row.ProductID, row.UserID); o != nil && o.ID == op.ID {
		early := time.NewTimer(time.Until(patient))
		defer early.Stop()
		select {
		case <-o.Answered:
		case <-early.C:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	for every := pollEvery; ; {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return "", nil
		case err != nil:
			return "", err
		case now.Op == nil || now.Op.ID != op.ID || now.State != engine.Running:
			return "", nil
		case !time.Now().Before(patient):
			if key, err := s.acceptedKey(ctx, now); err != nil || key != "" {
				return key, err
			}
			every = askAgain
		}
		if time.Now().After(until) {
			return "", engine.Errorf(engine.RotationUnconfirmed, "the engine's key is being rotated, and it accepts neither the old key nor the new one")
		}
		if !pause.For(ctx, every) {
			return "", ctx.Err()
		}
	}
}

// giveUpRotation ends a rotation that is not confirmed: the engine's next process reads the
// new hash. It returns when the row shows that, or has changed otherwise.
func (s *Scheduler) giveUpRotation(ctx context.Context, row *engine.Row, desired engine.State) error {
	row = row.Clone()
	opID := row.Op.ID
	row.Op.GiveUp, row.Desired = true, desired
	if err := s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, giveUpWithin)
	defer cancel()
	for pause.For(ctx, pollEvery) {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		if err != nil {
			return gone(err)
		}
		if now.Op == nil || now.Op.ID != opID || !now.Op.GiveUp {
			return nil
		}
	}
	return engine.BusyWith(engine.OpRotateKey)
}
