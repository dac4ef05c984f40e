package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// backfill writes the owner into an engine's secret, with its current key, and into its
// variable, and the key's id into the row.
func (s *Scheduler) backfill(ctx context.Context, row *engine.Row) error {
	if err := s.notTwin(ctx, row); err != nil {
		return err
	}
	k, err := s.vault.EngineKey(ctx, row.EngineID, row.KeyVersion, "")
	if err != nil {
		return err
	}
	newest, err := s.vault.NewestKey(ctx, row.EngineID)
	if err != nil {
		return err
	}
	if newest.Key != k.Key {
		return nil // a rotation is in progress, or ended in between
	}
	if (newest.Owner == secrets.Owner{}) {
		next := &secrets.EngineKey{Key: k.Key, ID: secrets.NewKeyID(), Owner: s.ownerOf(row)}
		if err := s.vault.PutEngineKey(ctx, row.EngineID, next, newest.Version); err != nil {
			return err
		}
		newest = next
	}
	if !s.agree(newest, row) {
		return s.contradiction(ctx, row, newest.Owner)
	}
	if err := s.witness(ctx, row); err != nil {
		return err
	}
	row.KeyVersion, row.KeyID = newest.Version, newest.ID
	return s.store.Update(ctx, row)
}

// claimAgain writes the user as the owner into a secret that names a warm engine, because
// Vault went back in time. The row and Nomad name the user, and nobody else ever got the
// engine.
func (s *Scheduler) claimAgain(ctx context.Context, row *engine.Row) error {
	k, err := s.vault.NewestKey(ctx, row.EngineID)
	if errors.Is(err, secrets.ErrNotFound) || err == nil && !s.isWarm(k, row) {
		return nil
	}
	if err != nil {
		return err
	}
	v, err := s.cluster.Variable(ctx, row.JobID())
	if err != nil {
		return err
	}
	if v.Witness == nil || v.Witness.ProductID != row.ProductID || v.Witness.UserID != row.UserID {
		return nil // an admin decides
	}
	own := &secrets.EngineKey{Key: k.Key, ID: k.ID, Owner: s.ownerOf(row)}
	return s.vault.PutEngineKey(ctx, row.EngineID, own, k.Version)
}
