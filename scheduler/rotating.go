package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

// What callers get while a key is rotated. Most rotations are over in a moment. An
// engine that does not take its new key goes on with the old one, and its users with
// it, until it is stopped or started.

const (
	// rotationPatience is how long an admit waits for a rotation before it asks the
	// engine which key it accepts.
	rotationPatience = 5 * time.Second
	// askAgain is between two such questions.
	askAgain = time.Second
	// giveUpWithin bounds the wait for a rotation to give way: its owner looks at its
	// row once per second.
	giveUpWithin = 15 * time.Second
)

// unconfirmed says whether a row's operation is a rotation whose caller was told that
// it is not confirmed.
func unconfirmed(row *engine.Row) bool {
	return row.Op != nil && row.Op.Kind == engine.OpRotateKey && (row.State != engine.Running || time.Now().After(row.Op.Deadline))
}

// rotates says whether a row's key is being rotated.
func rotates(row *engine.Row) bool {
	return row.Op != nil && row.Op.Kind == engine.OpRotateKey && row.URL != ""
}

// awaitRotation waits for the end of the row's rotation. "": it ended, and the row says
// what now. Otherwise the rotation takes long, and this is the key that the engine
// accepts meanwhile. ROTATION_UNCONFIRMED: it accepts none.
func (s *Scheduler) awaitRotation(ctx context.Context, row *engine.Row) (key string, err error) {
	op := row.Op
	began := time.Now()
	patient := engine.Within(op.BeganAt.Add(rotationPatience), began, rotationPatience)
	until := engine.Within(op.Deadline, began, s.limit(engine.OpRotateKey))
	if soonest := began.Add(rotationPatience); until.Before(soonest) {
		until = soonest
	}
	if o := s.running(row.ProductID, row.UserID); o != nil && o.opID == op.ID {
		early := time.NewTimer(time.Until(patient))
		defer early.Stop()
		select {
		case <-o.answered:
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

// acceptedKey asks an engine whose key is being rotated which one it accepts; "": none,
// or something else answers at its address.
func (s *Scheduler) acceptedKey(ctx context.Context, row *engine.Row) (string, error) {
	path, err := s.proofPath(ctx, row)
	probe, end := s.probe.Talk()
	defer end()
	if err != nil || row.URL == "" || probe.Locked(ctx, row.URL, path) != nil {
		return "", err
	}
	for _, k := range []struct {
		version int
		id      string
	}{{row.Op.KeyVersion, row.Op.KeyID}, {row.KeyVersion, row.KeyID}} {
		if k.version == 0 {
			continue
		}
		secret, err := s.vault.EngineKey(ctx, row.EngineID, k.version, k.id)
		if errors.Is(err, secrets.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		if code, err := probe.Status(ctx, row.URL, path, secret.Key); err == nil && !boot.Refuses(code) {
			return secret.Key, nil
		}
	}
	return "", ctx.Err()
}

// giveUpRotation has a rotation that is not confirmed end, so that the engine's next
// process, which reads the new hash, is its outcome. It returns when the row says so,
// or says something else.
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
