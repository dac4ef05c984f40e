package reconcile

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// backfillers is how many engines are given their witnesses at a time.
const backfillers = 4

// witnessAll writes, as the leader, the witnesses that are missing: those of engines
// that a version of the service made which knew none, those of products that changed
// while Vault was away; and it notes when every engine has its key again.
func (r *Reconciler) witnessAll(ctx context.Context, w *world) {
	if !w.read(listRows, listKeys, listOwners) {
		return
	}
	var failed atomic.Int64
	work, limited := errgroup.WithContext(ctx)
	work.SetLimit(backfillers)
	for _, row := range w.rows {
		if row.KeyVersion == 0 || row.KeyID != "" || row.Op != nil || row.State == engine.Destroying || w.keysMissing[row.EngineID] {
			continue
		}
		work.Go(func() error {
			err := r.d.Owners.Backfill(limited, row.Clone())
			if err != nil && MovedOn(err) != nil && !errors.Is(err, secrets.ErrConflict) && ctx.Err() == nil {
				failed.Add(1)
				r.d.Log.Debug("an engine was not given its witnesses; trying again", "engine_id", row.EngineID, "error", err)
			}
			return nil
		})
	}
	if w.keysLost {
		for _, row := range w.rows {
			if wantsKey(row) && row.ProductID != engine.WarmProduct {
				work.Go(func() error {
					if err := r.d.Owners.ClaimAgain(limited, row); err != nil && ctx.Err() == nil {
						r.d.Log.Debug("an engine's owner was not written into Vault again; trying again", "engine_id", row.EngineID, "error", err)
					}
					return nil
				})
			}
		}
	}
	_ = work.Wait() // the errors are told
	if n := failed.Load(); n > 0 {
		r.d.Log.Warn("engines of an earlier version have no witnesses yet; trying again", "engines", n)
	}
	for _, q := range w.quarantine {
		if err := r.reviewQuarantine(ctx, w, q); err != nil && ctx.Err() == nil {
			r.d.Log.Debug("a quarantined engine was not looked at; trying again", "engine_id", q.EngineID, "error", err)
		}
	}
	if err := r.d.Owners.WitnessProducts(ctx); err != nil && ctx.Err() == nil {
		r.d.Log.Warn("products have no witness in Vault yet; trying again", "error", err)
	}
	if err := r.d.Guard.NoteKeys(ctx, w.lostKeys()); err != nil && ctx.Err() == nil {
		r.d.Log.Debug("cannot note that every engine has its key again", "error", err)
	}
	for _, row := range w.rows {
		if w.keysMissing[row.EngineID] && row.ProductID == engine.WarmProduct {
			r.d.Engines.DiscardWarm(ctx, row, "Vault has lost its key") // nobody was told it
		}
	}
}

// reviewQuarantine takes away the quarantine of an engine whose row named another owner
// than its secret, or that two rows named, when that is so no more: the row agrees by
// now, or is gone.
func (r *Reconciler) reviewQuarantine(ctx context.Context, w *world, q *registry.Quarantined) error {
	if q.Why != WhyContradiction && q.Why != WhyTwins {
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
		k, err := r.d.Vault.EngineKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
		if err != nil || !r.d.Owners.Agree(k, row) {
			return err
		}
	}
	r.d.Owners.Settled(q.EngineID)
	r.d.Log.Info("a quarantined engine is its owner's by all that is known of it", "engine_id", q.EngineID)
	defer r.Trigger()
	return r.d.Owners.Release(ctx, q)
}
