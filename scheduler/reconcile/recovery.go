package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// recoverers is how many engines are compared with their witnesses at a time.
const recoverers = 16

// recovery rebuilds a registry that went back in time from the witnesses in Vault
// and Nomad. It can be cut anywhere and begun again: each write is one transaction
// under the leader's lock, and what was written is judged as nothing to do.
type recovery struct {
	r     *Reconciler
	dry   bool // it only says what it would do
	back  bool // the registry is an older one as a whole
	w     *world
	found *planner // what there is, by engine_id
	done  registry.Recovery

	mu        sync.Mutex
	rulings   []*Action
	restoring sync.Mutex // held while a product is read or brought back
	tenants   map[string]registry.Tenant
}

// recoverRegistry makes one attempt, and says in the deployment's record when the
// registry is whole again. An error: something could not be read or written; the
// next attempt goes on.
func (r *Reconciler) recoverRegistry(ctx context.Context) error {
	record, err := r.d.Store.Deployment(ctx)
	if err != nil || record.State != registry.RegistryRecovering {
		return err
	}
	began := time.Now()
	x := &recovery{r: r, back: record.Back, done: r.rebuilt, tenants: map[string]registry.Tenant{}}
	err = x.run(ctx)
	r.rebuilt = x.done // of all attempts
	if err != nil {
		return err
	}
	x.done.Why, x.done.BeganAt, x.done.EndedAt = record.Why, record.Since, time.Now().UTC()
	err = r.d.Engines.Audited(ctx, audit.Entry{
		Timestamp: began.UTC(), Action: audit.ActionRegistryRecover,
		Metadata: map[string]any{
			"why": record.Why, "rebuilt": x.done.Rebuilt, "corrected": x.done.Corrected, "missing": x.done.Missing,
			"products": x.done.Products, "pooled": x.done.Pooled,
		},
	}, func() error { return r.d.Guard.EndRecovery(ctx, record, x.done) })
	if err == nil {
		r.rebuilt = registry.Recovery{}
		r.d.Log.Warn("the registry was rebuilt", "why", record.Why, "rebuilt", x.done.Rebuilt, "corrected", x.done.Corrected, "missing", x.done.Missing,
			"products", x.done.Products, "pooled", x.done.Pooled, "ms", time.Since(began).Milliseconds())
	}
	return err
}

// PlanRecovery says what a recovery of the registry would do now; it changes
// nothing. BACKEND_UNAVAILABLE: a store does not say what it has.
func (r *Reconciler) PlanRecovery(ctx context.Context) ([]*Action, error) {
	x := &recovery{r: r, dry: true, tenants: map[string]registry.Tenant{}}
	if record := r.d.Guard.Current(); record != nil {
		x.back = record.Back
	}
	if err := x.run(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(x.rulings, byKey)
	return x.rulings, nil
}

func (x *recovery) run(ctx context.Context) error {
	// Products first: an engine without one is nobody's.
	if err := x.products(ctx); err != nil {
		return err
	}
	x.w = x.r.look(ctx, nil, cluster.Unthrottled)
	for name, err := range x.w.missing {
		return fmt.Errorf("the list of %s cannot be read: %w", name, err)
	}
	p := newPlanner(x.w)
	p.collect()
	x.found = p
	if err := x.pool(ctx, p); err != nil {
		return err
	}
	if err := x.rows(ctx, p); err != nil {
		return err
	}
	if err := x.lost(ctx, p); err != nil {
		return err
	}
	if err := x.quotas(ctx); err != nil {
		return err
	}
	return x.deleted(ctx)
}

// note keeps what is done, for those who ask what would be.
func (x *recovery) note(what Act, subject string, row *engine.Row, engineID, why string) {
	a := &Action{Act: what, Subject: subject, EngineID: engineID, Why: why}
	if row != nil {
		a.ProductID, a.UserID = row.ProductID, row.UserID
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rulings = append(x.rulings, a)
	switch what {
	case ActRebuild:
		x.done.Rebuilt++
	case ActCorrect:
		x.done.Corrected++
	case ActMissing:
		x.done.Missing++
	case ActRestoreProduct:
		x.done.Products++
	case ActDropPooled:
		x.done.Pooled++
	}
}

// pool takes away the entries of pooled volumes that were handed out since, or whose
// volume is gone. The volumes stay.
func (x *recovery) pool(ctx context.Context, p *planner) error {
	entries, _, err := x.r.d.Store.PooledVolumes(ctx) // a damaged one is the leader's to take away
	if err != nil {
		return err
	}
	for _, v := range entries {
		f := p.at(v.EngineID)
		why := ""
		switch {
		case f.key || f.job != nil || f.variable != nil:
			why = "it was handed out since: there is " + f.String()
		case v.Ready() && !slices.ContainsFunc(f.volumes, func(have *cluster.Volume) bool { return have.ID == v.VolumeID }):
			why = "its volume is gone"
		default:
			continue
		}
		x.note(ActDropPooled, "pool", nil, v.EngineID, why)
		delete(x.w.pooled, v.EngineID)
		if x.dry {
			continue
		}
		if err := x.r.d.Store.DeletePooledVolume(ctx, v); err != nil && !errors.Is(err, registry.ErrConflict) {
			return err
		}
	}
	return nil
}

// quotas makes every count agree with the rows. Nothing counts meanwhile: claims are
// held, and changes wait.
func (x *recovery) quotas(ctx context.Context) error {
	if x.dry {
		return nil
	}
	rows, unreadable, err := x.r.d.Store.Engines(ctx)
	if err != nil {
		return err
	}
	counts := map[string]int{}
	for _, row := range rows {
		counts[row.ProductID]++
	}
	for _, u := range unreadable {
		counts[u.ProductID]++
	}
	quotas, err := x.r.d.Store.Quotas(ctx)
	if err != nil {
		return err
	}
	tenants, _, err := x.r.d.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		if q := quotas[t.ProductID]; q.Count != counts[t.ProductID] || q.Index == 0 {
			if err := x.r.d.Store.CorrectQuota(ctx, t.ProductID, q, counts[t.ProductID]); err != nil {
				return err
			}
		}
	}
	return nil
}
