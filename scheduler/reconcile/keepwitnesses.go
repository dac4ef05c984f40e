package reconcile

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// backfillers is how many engines get their witnesses concurrently.
const backfillers = 4

// witnessAll writes, as the leader, missing witnesses: those of engines that a version of
// the service without witnesses created, and those of products that changed while Vault was
// unavailable. It also records when every engine has its key again.
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
				r.d.Log.Debug("cannot write the witnesses of an engine; retrying", "engine_id", row.EngineID, "error", err)
			}
			return nil
		})
	}
	if w.keysLost {
		for _, row := range w.rows {
			if wantsKey(row) && row.ProductID != engine.WarmProduct {
				work.Go(func() error {
					if err := r.d.Owners.ClaimAgain(limited, row); err != nil && ctx.Err() == nil {
						r.d.Log.Debug("cannot write an engine's owner into Vault again; retrying", "engine_id", row.EngineID, "error", err)
					}
					return nil
				})
			}
		}
	}
	_ = work.Wait() // the errors are logged
	if n := failed.Load(); n > 0 {
		r.d.Log.Warn("engines of an earlier version have no witnesses yet; retrying", "engines", n)
	}
	for _, q := range w.quarantine {
		if err := r.reviewQuarantine(ctx, w, q); err != nil && ctx.Err() == nil {
			r.d.Log.Debug("cannot check a quarantined engine; retrying", "engine_id", q.EngineID, "error", err)
		}
	}
	if err := r.d.Owners.WitnessProducts(ctx); err != nil && ctx.Err() == nil {
		r.d.Log.Warn("cannot write the witnesses of products into Vault; retrying", "error", err)
	}
	if err := r.d.Guard.NoteKeys(ctx, w.lostKeys()); err != nil && ctx.Err() == nil {
		r.d.Log.Debug("cannot record that every engine has its key again", "error", err)
	}
	for _, row := range w.rows {
		if w.keysMissing[row.EngineID] && row.ProductID == engine.WarmProduct {
			r.d.Engines.DiscardWarm(ctx, row, "Vault has lost its key") // it was never given to a user
		}
	}
}

// reviewQuarantine ends the quarantine of an engine whose row and secret named different
// owners, or that two rows named, if that is no longer true: the row agrees now, or was
// deleted.
func (r *Reconciler) reviewQuarantine(ctx context.Context, w *world, q *registry.Quarantined) error {
	if q.Why != witness.WhyContradiction && q.Why != WhyTwins {
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
	r.d.Log.Info("all records of a quarantined engine agree again", "engine_id", q.EngineID)
	defer r.Trigger()
	return r.d.Owners.Release(ctx, q)
}
