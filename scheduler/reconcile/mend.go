package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
)

// rebuildDamaged replaces an unreadable row with one from the engine's witnesses. If these
// contradict each other, an admin decides.
func (r *Reconciler) rebuildDamaged(ctx context.Context, a *Action) error {
	e, err := r.Evidence(ctx, a.found, nil)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	x := &recovery{r: r, w: &world{now: now}, found: &planner{found: map[string]*Found{a.EngineID: a.found}}, tenants: map[string]registry.Tenant{}}
	ruled := e.JudgeLost(now, true) // there was a row
	switch ruled.Verdict {
	case witness.Rebuild:
		return r.mending(ctx, a, func() error { return MovedOn(x.rebuild(ctx, ruled, nil)) })
	case witness.Quarantine:
		return x.quarantine(ctx, a.found, e, ruled.Why)
	}
	return nil // the next pass handles what remains of it
}

// forgetDamaged deletes an unreadable record that is not needed.
func (r *Reconciler) forgetDamaged(ctx context.Context, a *Action) error {
	return r.mending(ctx, a, func() error {
		if a.Subject == "engine" {
			return MovedOn(r.d.Store.RemoveUnreadable(ctx, a.damaged))
		}
		return MovedOn(r.d.Store.DeleteUnreadable(ctx, a.damaged))
	})
}

// restoreDamaged replaces an unreadable row of a product with its witness in Vault.
func (r *Reconciler) restoreDamaged(ctx context.Context, a *Action) error {
	witness, err := r.d.Vault.Product(ctx, a.ProductID)
	if err != nil {
		return err
	}
	switch {
	case witness.Deleted && !a.hasRows:
		return r.mending(ctx, a, func() error { return MovedOn(r.d.Store.DeleteUnreadable(ctx, a.damaged)) })
	case len(witness.Record) == 0:
		return fmt.Errorf("reconcile: the record of product %s  is damaged, and Vault has no witness", a.ProductID)
	}
	return r.mending(ctx, a, func() error {
		x := &recovery{r: r}
		return MovedOn(x.product(ctx, a.ProductID, witness, &engine.Product{ProductID: a.ProductID, Index: a.damaged.Index}))
	})
}

// mending makes a change that repairs a damaged record between beginning and completing its
// audit row.
func (r *Reconciler) mending(ctx context.Context, a *Action, change func() error) error {
	r.d.Log.Warn("a record of the registry is damaged", "act", string(a.Act), "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "error", a.damaged.Err)
	return r.d.Engines.Audited(ctx, audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: a.ProductID, UserID: a.UserID, EngineID: a.EngineID, Action: audit.ActionRegistryRecover,
		Metadata: map[string]any{"why": a.Why, "act": string(a.Act), "subject": a.Subject},
	}, change)
}

// announce makes all replicas read again the rows that a pass found damaged, or duplicate,
// and that this replica's view does not know as such, because the write that caused it
// notified nobody.
func (r *Reconciler) announce(ctx context.Context, w *world) {
	var err error
	if len(w.unreadable) > r.d.Rows.Unreadable("") {
		for _, u := range w.unreadable {
			err = errors.Join(err, r.d.Store.Announce(ctx, u.ProductID, u.UserID))
		}
	}
	byID := map[string]*engine.Row{}
	for _, row := range w.rows {
		if other := byID[row.EngineID]; other != nil && r.d.Rows.Twins(row.EngineID) == nil {
			err = errors.Join(err, r.d.Store.Announce(ctx, row.ProductID, row.UserID), r.d.Store.Announce(ctx, other.ProductID, other.UserID))
		}
		byID[row.EngineID] = row
	}
	if err != nil && ctx.Err() == nil {
		r.d.Log.Debug("cannot announce damaged rows; the next pass does it", "error", err)
	}
}
