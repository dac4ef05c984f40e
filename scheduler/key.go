package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/secrets"
)

// showPatience is how long a GET waits for an engine that accepts neither the old key nor the
// new one during a rotation. In that time, a process that is restarted to read the new key is
// up again.
const showPatience = time.Second

// Show returns the caller's engine with its key, both of one moment. While the key is
// being rotated, it is the key that the engine accepts; "": it accepts neither, or does not
// respond. ENGINE_NOT_FOUND.
func (s *Scheduler) Show(ctx context.Context, caller *Caller) (*engine.Row, string, error) {
	patient := time.Now().Add(showPatience)
	for range maxClaims {
		row, err := caller.engine()
		if err != nil {
			return nil, "", err
		}
		if rotates(row) {
			// The row's key may be the old one, which nobody may be given after
			// somebody was admitted with the new one.
			key, err := s.acceptedKey(ctx, row)
			if err != nil || key != "" || time.Now().After(patient) {
				return row, key, err
			}
			if !pause.For(ctx, showPatience/10) {
				return nil, "", ctx.Err()
			}
			if err := caller.refresh(ctx, s); err != nil {
				return nil, "", err
			}
			continue
		}
		key, err := s.Key(ctx, row)
		if !isRetired(err) {
			return row, key, err
		}
		if err := caller.rekeyed(ctx, s, err); err != nil {
			return nil, "", err
		}
	}
	row, err := caller.engine() // its key is rotated again and again
	return row, "", err
}

// keyOf returns the key of an engine that was just changed or found, for its caller, with
// the row that names it. While the key is being rotated, it waits as an admit does.
// ENGINE_BUSY: it is being destroyed, or its key is being rotated while it does not run.
// ROTATION_UNCONFIRMED, and the errors of Key.
func (s *Scheduler) keyOf(ctx context.Context, caller *Caller, row *engine.Row) (*engine.Row, string, error) {
	engineID := row.EngineID
	for range maxClaims {
		caller.Engine = row
		if rotates(row) && row.State != engine.Running {
			return nil, "", engine.BusyWith(engine.OpRotateKey)
		}
		if rotates(row) {
			key, err := s.awaitRotation(ctx, row)
			if err != nil || key != "" {
				return row, key, err
			}
			if err := caller.refresh(ctx, s); err != nil {
				return nil, "", err
			}
		} else {
			key, err := s.Key(ctx, row)
			if !isRetired(err) {
				return row, key, err
			}
			if err := caller.rekeyed(ctx, s, err); err != nil {
				return nil, "", err
			}
		}
		if row = caller.Engine; row == nil || row.EngineID != engineID {
			return nil, "", engine.BusyWith(engine.OpDestroy)
		}
	}
	return nil, "", engine.BusyWith(engine.OpRotateKey)
}

// Key returns the engine's key for its product. ENGINE_QUARANTINED: the row and the secret
// name different owners, and nobody gets the key.
func (s *Scheduler) Key(ctx context.Context, e *engine.Row) (string, error) {
	if e.KeyVersion == 0 {
		return "", nil // it is being provisioned and has no key yet
	}
	k, err := s.secret(ctx, e)
	if errors.Is(err, secrets.ErrNotFound) && e.State == engine.Destroying {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return k.Key, nil
}

// secret reads the secret that a row names. ENGINE_QUARANTINED: the secret names another
// owner, and nobody gets the key.
func (s *Scheduler) secret(ctx context.Context, row *engine.Row) (*secrets.EngineKey, error) {
	if why, _ := s.store.WentBack(); why != "" {
		s.vault.Forget() // the row may name a key that was destroyed since
	}
	k, err := s.vault.EngineKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
	if err != nil {
		return nil, err
	}
	if !s.agree(k, row) {
		return nil, s.contradiction(ctx, row, k.Owner)
	}
	if (k.Owner == secrets.Owner{}) {
		err = s.notTwin(ctx, row)
	}
	return k, err
}

// isRetired reports whether the version of a key is not in Vault: a rotation that ended
// after the row was read has destroyed it.
func isRetired(err error) bool { return errors.Is(err, secrets.ErrNotFound) }

// rekeyed reads the caller's row again after its key was not found. It returns the error if
// the row still names that key: then the key is lost.
func (c *Caller) rekeyed(ctx context.Context, s *Scheduler, notFound error) error {
	before := c.Engine
	if err := c.refresh(ctx, s); err != nil {
		return err
	}
	if now := c.Engine; now != nil && now.EngineID == before.EngineID && now.KeyVersion == before.KeyVersion && now.State == before.State {
		return s.keyGone(ctx, now, notFound)
	}
	return nil
}

// keyGone returns the error for a row that names a key which Vault does not have. If Vault
// has a later key of the same owner, the row is outdated: the registry went back in time.
// Otherwise the key is lost.
func (s *Scheduler) keyGone(ctx context.Context, row *engine.Row, notFound error) error {
	if !s.guard.OK() {
		return errRecovering
	}
	newest, err := s.vault.NewestKey(ctx, row.EngineID)
	if err != nil || newest.Version <= row.KeyVersion || newest.Owner != s.ownerOf(row) || row.Op != nil {
		return notFound
	}
	s.guard.Suspect("engine " + row.EngineID + " has a later key in Vault than its row names")
	return errRecovering
}
