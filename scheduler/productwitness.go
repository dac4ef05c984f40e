package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// markDeleted marks a product as deleted in Vault. Its data stays there, in case an engine
// of the product appears.
func (s *Scheduler) markDeleted(ctx context.Context, p *engine.Product) error {
	err := s.writeWitness(ctx, p, func(there *secrets.Product) (bool, error) {
		there.Revision, there.Deleted, there.DeletedAt = max(there.Revision, p.Revision), true, time.Now().UTC()
		return true, nil
	})
	if !errors.Is(err, secrets.ErrConflict) {
		s.witnessed.Delete(p.ProductID)
	}
	return err
}

var errDeleting = errors.New("scheduler: the product is being deleted")

// deletionTakes is longer than a successful deletion of a product takes: a product that
// still exists after it was not deleted.
const deletionTakes = time.Minute

// witnessProduct writes the witness of a product's row into Vault, unless a later one is
// there. A product that is being deleted stays so, unless kept is set.
func (s *Scheduler) witnessProduct(ctx context.Context, p *engine.Product, kept bool) error {
	return s.writeWitness(ctx, p, func(there *secrets.Product) (bool, error) {
		if there.Revision > p.Revision || there.Revision == p.Revision && len(there.Record) > 0 && !there.Deleted {
			return false, nil
		}
		if there.Deleted && !kept && time.Since(there.DeletedAt).Abs() < deletionTakes {
			return false, errDeleting
		}
		there.Revision, there.Deleted, there.DeletedAt = p.Revision, false, time.Time{}
		return true, nil
	})
}

// writeWitness writes a product's row into Vault with what change derives from the existing
// witness; it may be called again. If change returns false, the witness stays as it is.
func (s *Scheduler) writeWitness(ctx context.Context, p *engine.Product, change func(there *secrets.Product) (bool, error)) error {
	text := registry.EncodeProduct(p)
	for range maxClaims {
		there, err := s.vault.Product(ctx, p.ProductID)
		if err != nil {
			return err
		}
		if write, err := change(there); err != nil || !write {
			return err
		}
		there.Record = text
		if err = s.vault.PutProduct(ctx, p.ProductID, there); !errors.Is(err, secrets.ErrConflict) {
			return err
		}
	}
	return secrets.ErrConflict
}

// witnessProducts writes the witnesses of products whose row has changed since this
// replica's last check, and starts a recovery of the registry if a row is missing there.
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
	for _, u := range unreadable { // the next pass restores it
		have[u.ProductID] = true
	}
	for _, t := range products {
		have[t.ProductID] = true
		if seen, known := s.witnessed.Load(t.ProductID); known && seen == t.Revision {
			continue
		}
		err := s.witnessProduct(ctx, t, false)
		if errors.Is(err, errDeleting) {
			continue // the next pass checks it again
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
			return s.guard.StartRecovery(ctx, "product "+id+" has a witness in Vault but no row in Consul", false)
		}
	}
	return nil
}

// deletedProduct replaces the revision of a deleted product.
const deletedProduct = -1
