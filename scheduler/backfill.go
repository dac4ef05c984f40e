package scheduler

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// backfillers is how many engines are given their witnesses at a time.
const backfillers = 4

// witnessAll writes, as the leader, the witnesses that are missing: those of engines
// that a version of the service made which knew none, those of products that changed
// while Vault was away; and it notes when every engine has its key again.
func (s *Scheduler) witnessAll(ctx context.Context, w *world) {
	if !w.read(listRows, listKeys, listOwners) {
		return
	}
	var failed atomic.Int64
	work, limited := errgroup.WithContext(ctx)
	work.SetLimit(backfillers)
	for _, row := range w.rows {
		if row.KeyVersion == 0 || row.KeyID != "" || row.Op != nil || row.State == registry.Destroying || w.keysMissing[row.EngineID] {
			continue
		}
		work.Go(func() error {
			err := s.backfill(limited, row.Clone())
			if err != nil && movedOn(err) != nil && !errors.Is(err, secrets.ErrConflict) && ctx.Err() == nil {
				failed.Add(1)
				s.log.Debug("an engine was not given its witnesses; trying again", "engine_id", row.EngineID, "error", err)
			}
			return nil
		})
	}
	if w.keysLost {
		for _, row := range w.rows {
			if wantsKey(row) && row.ProductID != registry.WarmProduct {
				work.Go(func() error {
					if err := s.claimAgain(limited, row); err != nil && ctx.Err() == nil {
						s.log.Debug("an engine's owner was not written into Vault again; trying again", "engine_id", row.EngineID, "error", err)
					}
					return nil
				})
			}
		}
	}
	_ = work.Wait() // the errors are told
	if n := failed.Load(); n > 0 {
		s.log.Warn("engines of an earlier version have no witnesses yet; trying again", "engines", n)
	}
	for _, q := range w.quarantine {
		if err := s.reviewQuarantine(ctx, w, q); err != nil && ctx.Err() == nil {
			s.log.Debug("a quarantined engine was not looked at; trying again", "engine_id", q.EngineID, "error", err)
		}
	}
	if err := s.witnessProducts(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("products have no witness in Vault yet; trying again", "error", err)
	}
	if err := s.guard.noteKeys(ctx, w.lostKeys()); err != nil && ctx.Err() == nil {
		s.log.Debug("cannot note that every engine has its key again", "error", err)
	}
	for _, row := range w.rows {
		if w.keysMissing[row.EngineID] && row.ProductID == registry.WarmProduct {
			s.warm.remove(ctx, row, "Vault has lost its key") // nobody was told it
		}
	}
}

// reviewQuarantine takes away the quarantine of an engine whose row named another owner
// than its secret, or that two rows named, when that is so no more: the row agrees by
// now, or is gone.
func (s *Scheduler) reviewQuarantine(ctx context.Context, w *world, q *registry.Quarantined) error {
	if q.Why != whyContradiction && q.Why != whyTwins {
		return nil
	}
	seen := false
	for _, row := range w.rows {
		if row.EngineID != q.EngineID {
			continue
		}
		if seen {
			return nil // two rows name it
		}
		seen = true
		k, err := s.vault.EngineKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
		if err != nil || !s.agree(k, row) {
			return err
		}
	}
	s.mu.Lock()
	delete(s.contradicted, q.EngineID)
	s.mu.Unlock()
	s.log.Info("a quarantined engine is its owner's by all that is known of it", "engine_id", q.EngineID)
	defer s.reconcile.nudge()
	return s.release(ctx, q)
}

// backfill writes the owner into an engine's secret, with the key that it has, and
// into its variable; then the row names the key by its own name.
func (s *Scheduler) backfill(ctx context.Context, row *registry.Engine) error {
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
		return nil // a rotation is under way, or ended in between
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

// claimAgain makes a secret the user's again that a Vault which went back in time says
// is a warm engine's: the row and Nomad name the user, and nobody else was ever given
// the engine.
func (s *Scheduler) claimAgain(ctx context.Context, row *registry.Engine) error {
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

// witnessProducts writes the witnesses of products whose row has changed since this
// replica last looked, and has the registry rebuilt when one is missing in it.
func (s *Scheduler) witnessProducts(ctx context.Context) error {
	ids, err := s.vault.ProductIDs(ctx)
	if err != nil {
		return err
	}
	products, unreadable, err := s.store.Products(ctx)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, u := range unreadable { // the next pass brings it back
		have[u.ProductID] = true
	}
	for _, t := range products {
		have[t.ProductID] = true
		if seen, known := s.witnessed.Load(t.ProductID); known && seen == t.Revision {
			continue
		}
		err := s.witnessProduct(ctx, t, false)
		if errors.Is(err, errDeleting) {
			continue // the next pass looks again
		}
		if err != nil {
			return err
		}
		s.witnessed.Store(t.ProductID, t.Revision)
	}
	for _, id := range ids {
		if seen, known := s.witnessed.Load(id); have[id] || known && seen == deletedProduct {
			continue
		}
		there, err := s.vault.Product(ctx, id)
		if err != nil {
			return err
		}
		if there.Deleted || len(there.Record) == 0 {
			s.witnessed.Store(id, deletedProduct)
			continue
		}
		// The product may have been deleted between the two lists.
		if _, err := s.store.Tenant(ctx, id); !errors.Is(err, registry.ErrNotFound) {
			if err != nil {
				return err
			}
			continue
		}
		if there, err = s.vault.Product(ctx, id); err != nil {
			return err
		}
		if !there.Deleted {
			return s.guard.startRecovery(ctx, "product "+id+" has a witness in Vault and no row in Consul", false)
		}
	}
	return nil
}

// deletedProduct stands for the revision of a product that was deleted.
const deletedProduct = -1
