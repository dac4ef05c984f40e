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

// recoverers is how many engines are compared with their witnesses concurrently.
const recoverers = 16

// recovery rebuilds a registry that went back in time from the witnesses in Vault and
// Nomad. It can be interrupted anywhere and repeated: each write is one transaction under
// the leader's lock, and nothing needs to be done for what is already written.
type recovery struct {
	r     *Reconciler
	dry   bool // it only plans
	back  bool // the whole registry is an older one
	w     *world
	found *planner // what exists, by engine_id
	done  registry.Recovery

	mu        sync.Mutex
	rulings   []*Action
	restoring sync.Mutex // held while a product is read or restored
	tenants   map[string]registry.Tenant
}

// recoverRegistry makes one attempt, and records in the deployment's record when the
// registry is complete again. An error means that something could not be read or written;
// the next attempt continues.
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

// PlanRecovery returns what a recovery of the registry would do now, and changes nothing.
// BACKEND_UNAVAILABLE: a store cannot be read.
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
	// Products first, because an engine without a product has no owner.
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

// note records an action, for the plan.
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

// pool deletes the entries of pooled volumes that were handed out, or whose volume no
// longer exists. The volumes are kept.
func (x *recovery) pool(ctx context.Context, p *planner) error {
	entries, _, err := x.r.d.Store.PooledVolumes(ctx) // the leader deletes damaged entries
	if err != nil {
		return err
	}
	for _, v := range entries {
		f := p.at(v.EngineID)
		why := ""
		switch {
		case f.key || f.job != nil || f.variable != nil:
			why = "it was handed out: there is " + f.String()
		case v.Ready() && !slices.ContainsFunc(f.volumes, func(have *cluster.Volume) bool { return have.ID == v.VolumeID }):
			why = "its volume no longer exists"
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

// quotas makes every count agree with the rows. Nothing is counted meanwhile, because
// claims are refused and changes wait.
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
