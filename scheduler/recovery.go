package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// recoverers is how many engines are compared with their witnesses at a time.
const recoverers = 16

// recovery rebuilds a registry that went back in time from the witnesses in Vault
// and Nomad. It can be cut anywhere and begun again: each write is one transaction
// under the leader's lock, and what was written is judged as nothing to do.
type recovery struct {
	s     *Scheduler
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
func (r *reconciler) recoverRegistry(ctx context.Context) error {
	s := r.s
	record, err := s.store.Deployment(ctx)
	if err != nil || record.State != registry.RegistryRecovering {
		return err
	}
	began := time.Now()
	x := &recovery{s: s, back: record.Back, done: r.rebuilt, tenants: map[string]registry.Tenant{}}
	err = x.run(ctx)
	r.rebuilt = x.done // of all attempts
	if err != nil {
		return err
	}
	x.done.Why, x.done.BeganAt, x.done.EndedAt = record.Why, record.Since, time.Now().UTC()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), Action: audit.ActionRegistryRecover, Actor: actorSystem, RequestID: RequestID(ctx),
		Metadata: map[string]any{
			"why": record.Why, "rebuilt": x.done.Rebuilt, "corrected": x.done.Corrected, "missing": x.done.Missing,
			"products": x.done.Products, "pooled": x.done.Pooled,
		},
	})
	if err != nil {
		return err
	}
	err = s.guard.endRecovery(ctx, record, x.done)
	s.abandon(ctx, id, began, err)
	if err == nil {
		r.rebuilt = registry.Recovery{}
		s.log.Warn("the registry was rebuilt", "why", record.Why, "rebuilt", x.done.Rebuilt, "corrected", x.done.Corrected, "missing", x.done.Missing,
			"products", x.done.Products, "pooled", x.done.Pooled, "ms", time.Since(began).Milliseconds())
	}
	return err
}

// PlanRecovery says what a recovery of the registry would do now; it changes
// nothing. BACKEND_UNAVAILABLE: a store does not say what it has.
func (s *Scheduler) PlanRecovery(ctx context.Context) ([]*Action, error) {
	x := &recovery{s: s, dry: true, tenants: map[string]registry.Tenant{}}
	if record := s.guard.current(); record != nil {
		x.back = record.Back
	}
	if err := x.run(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(x.rulings, byKey)
	return x.rulings, nil
}

// RequestRecovery has the leader compare every engine with its witnesses, and
// rebuild what is missing. Changes wait meanwhile.
func (s *Scheduler) RequestRecovery(ctx context.Context) error {
	if err := s.guard.startRecovery(ctx, "an admin asked for it", true); err != nil {
		return err
	}
	return s.store.RequestReconcile(ctx)
}

func (x *recovery) run(ctx context.Context) error {
	// Products first: an engine without one is nobody's.
	if err := x.products(ctx); err != nil {
		return err
	}
	x.w = x.s.look(ctx, nil, cluster.Hasty)
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
func (x *recovery) note(what Act, subject string, row *registry.Engine, engineID, why string) {
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

// products brings back the rows of products that are missing or older than their
// witnesses in Vault.
func (x *recovery) products(ctx context.Context) error {
	ids, err := x.s.vault.ProductIDs(ctx)
	if err != nil {
		return err
	}
	products, unreadable, err := x.s.store.Products(ctx)
	if err != nil {
		return err
	}
	have := map[string]*registry.Product{}
	for _, p := range products {
		have[p.ProductID] = p
	}
	for _, u := range unreadable { // any witness is later
		have[u.ProductID] = &registry.Product{ProductID: u.ProductID, Index: u.Index, Revision: -1}
	}
	for _, id := range ids {
		witness, err := x.s.vault.Product(ctx, id)
		if err != nil {
			return err
		}
		here := have[id]
		if witness.Deleted || len(witness.Record) == 0 || here != nil && here.Revision >= witness.Revision {
			continue
		}
		if err := x.product(ctx, id, witness, here); err != nil {
			return err
		}
	}
	return nil
}

// product brings one product back, over the row that it has, if it has one.
func (x *recovery) product(ctx context.Context, id string, witness *secrets.Product, before *registry.Product) error {
	p, err := registry.DecodeProduct(witness.Record)
	if err != nil || p.ProductID != id {
		x.s.log.Error("the witness of a product in Vault cannot be read", "product_id", id, "error", err)
		return nil
	}
	x.note(ActRestoreProduct, "product", &registry.Engine{ProductID: id}, "", fmt.Sprintf("its witness in Vault is of revision %d", witness.Revision))
	if x.dry {
		return nil
	}
	err = x.s.store.RestoreProduct(ctx, p, before)
	if errors.Is(err, registry.ErrExists) {
		x.s.log.Error("a product cannot be brought back: another one has its slug by now", "product_id", id, "slug", p.Slug)
		return nil
	}
	return err
}

// tenant is a lost engine's product; one that was deleted comes back for it.
func (x *recovery) tenant(ctx context.Context, id string) (registry.Tenant, error) {
	x.restoring.Lock()
	defer x.restoring.Unlock()
	if t, known := x.tenants[id]; known {
		return t, nil
	}
	t, err := x.tenantOf(ctx, id)
	if err == nil {
		x.tenants[id] = t
	}
	return t, err
}

func (x *recovery) tenantOf(ctx context.Context, id string) (registry.Tenant, error) {
	t, err := x.s.store.Tenant(ctx, id)
	if !errors.Is(err, registry.ErrNotFound) {
		return t, err
	}
	witness, werr := x.s.vault.Product(ctx, id)
	if werr != nil {
		return t, werr
	}
	if len(witness.Record) == 0 {
		return t, err
	}
	if x.dry {
		p, err := registry.DecodeProduct(witness.Record)
		return registry.Tenant{Product: p}, err
	}
	if err := x.product(ctx, id, witness, nil); err != nil && !errors.Is(err, registry.ErrConflict) {
		return t, err
	}
	return x.s.store.Tenant(ctx, id)
}

// deleted removes the products that were deleted since, and have no engine.
func (x *recovery) deleted(ctx context.Context) error {
	tenants, _, err := x.s.store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		witness, err := x.s.vault.Product(ctx, t.ProductID)
		if err != nil {
			return err
		}
		if !witness.Deleted || t.Engines > 0 || witness.Revision < t.Revision || x.dry {
			continue
		}
		x.s.log.Warn("a product was deleted since and is removed again", "product_id", t.ProductID, "slug", t.Slug)
		if err := x.s.store.DeleteProduct(ctx, t.ProductID); err != nil && !errors.Is(err, registry.ErrHasEngines) && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
	}
	return nil
}

// pool takes away the entries of pooled volumes that were handed out since, or whose
// volume is gone. The volumes stay.
func (x *recovery) pool(ctx context.Context, p *planner) error {
	entries, _, err := x.s.store.PooledVolumes(ctx) // a damaged one is the leader's to take away
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
		if err := x.s.store.DeletePooledVolume(ctx, v); err != nil && !errors.Is(err, registry.ErrConflict) {
			return err
		}
	}
	return nil
}

// rows compares every row with its witnesses.
func (x *recovery) rows(ctx context.Context, p *planner) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, row := range p.rows {
		work.Go(func() error { return x.row(ctx, p, row.Clone()) })
	}
	return work.Wait()
}

func (x *recovery) row(ctx context.Context, p *planner, row *registry.Engine) error {
	w, err := x.s.witnessesOf(ctx, p.peek(row.EngineID), row)
	if err != nil {
		return err
	}
	r := w.judgeRow(x.w.now, x.back)
	if r.act == "" {
		return nil
	}
	x.note(r.act, "engine", row, row.EngineID, r.why)
	if x.dry {
		return nil
	}
	switch r.act {
	case ActRebuild:
		return x.rebuild(ctx, r, row)
	case ActQuarantine:
		_ = x.s.contradiction(ctx, row, w.owner())
		return nil
	}
	x.s.log.Warn("a row was older than its engine and is corrected", "engine_id", row.EngineID, "product_id", row.ProductID, "was", string(row.State), "is", string(r.row.State), "why", r.why)
	err = x.s.store.Correct(ctx, r.row, row.EngineID, nil)
	if errors.Is(err, registry.ErrConflict) {
		return fmt.Errorf("engine %s changed meanwhile: %w", row.EngineID, err)
	}
	return err
}

// lost rebuilds the rows of engines that have a user and no row, and quarantines
// what contradicts itself.
func (x *recovery) lost(ctx context.Context, p *planner) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, id := range slices.Sorted(maps.Keys(p.found)) {
		f := p.found[id]
		if f.empty() || p.byID[id] != nil || p.stranded[id] || x.w.pooled[id] || p.foreign(f) {
			continue
		}
		work.Go(func() error {
			w, err := x.s.witnessesOf(ctx, f, nil)
			if err != nil {
				return err
			}
			r := w.judgeLost(x.w.now, x.back)
			switch r.act {
			case ActRebuild:
				return x.rebuild(ctx, r, nil)
			case ActQuarantine:
				return x.quarantine(ctx, f, w, r.why)
			}
			return nil
		})
	}
	return work.Wait()
}

// rebuild writes the row that was made from an engine's witnesses. before is the row
// that it has under another owner, or nil.
func (x *recovery) rebuild(ctx context.Context, r ruling, before *registry.Engine) error {
	s, row := x.s, r.row
	why := ""
	t, err := x.tenant(ctx, row.ProductID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		why = "its product is not known"
	case err != nil:
		return err
	default:
		row.ProductSlug = t.Slug
		if row.Image == "" {
			if row.Image, err = s.allowedImage(t.Product, ""); err != nil {
				why = "nothing says which image it runs"
			}
			row.Resources, row.NodePool = s.resources(t.Policy), t.Policy.NodePool
		}
	}
	has, err := s.store.Engine(ctx, row.ProductID, row.UserID)
	var damaged *registry.Unreadable
	switch {
	case errors.As(err, &damaged) && damaged.Newer:
		return nil // it is there, for those who can read it
	case damaged != nil: // and is written over
		has = nil
	case err != nil && !errors.Is(err, registry.ErrNotFound):
		return err
	}
	if err == nil && has.EngineID != row.EngineID && has.Reason != engine.ReasonBrainMissing {
		// Of a row that was put back there may be nothing left: it was destroyed since,
		// or its provision went on under another id.
		other, err := s.witnessesOf(ctx, x.found.peek(has.EngineID), has)
		if err != nil {
			return err
		}
		if !other.nothing() {
			why = "its user has another engine, " + has.EngineID
		}
	}
	if why != "" {
		w := &witnesses{id: row.EngineID}
		return x.quarantineAs(ctx, w, row, []string{"key", "volume"}, why)
	}
	if before == nil { // told already
		x.note(ActRebuild, "engine", row, row.EngineID, r.why)
	}
	if x.dry {
		return nil
	}
	s.log.Warn("an engine had no row that can be read; it is rebuilt from its witnesses", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State), "why", r.why)
	switch {
	case damaged != nil:
		row.Index = damaged.Index
		return s.store.Correct(ctx, row, "", before)
	case err == nil:
		row.Index = has.Index
		return s.store.Correct(ctx, row, has.EngineID, before)
	}
	return s.store.Rebuild(ctx, t.Product, row, before)
}

// quarantine notes an engine that only an admin can decide about.
func (x *recovery) quarantine(ctx context.Context, f *found, w *witnesses, why string) error {
	owner := w.owner()
	row := &registry.Engine{EngineID: f.id, ProductID: owner.ProductID, UserID: owner.UserID}
	if len(w.volumes) > 0 {
		row.NodeID = w.volumes[0].NodeID
	}
	return x.quarantineAs(ctx, w, row, f.parts(), why)
}

func (x *recovery) quarantineAs(ctx context.Context, w *witnesses, row *registry.Engine, what []string, why string) error {
	if x.w.quarantined[row.EngineID] {
		return nil
	}
	x.note(ActQuarantine, "engine", row, w.id, why)
	if x.dry {
		return nil
	}
	x.s.log.Error("an engine is quarantined until an admin decides (orch engine adopt, orch engine discard)", "engine_id", row.EngineID, "product_id", row.ProductID, "why", why)
	return x.s.quarantine(ctx, &registry.Quarantined{
		EngineID: row.EngineID, Since: time.Now().UTC(), Why: why, What: what, ProductID: row.ProductID, UserID: row.UserID, NodeID: row.NodeID,
	})
}

// quotas makes every count agree with the rows. Nothing counts meanwhile: claims are
// held, and changes wait.
func (x *recovery) quotas(ctx context.Context) error {
	if x.dry {
		return nil
	}
	rows, unreadable, err := x.s.store.Engines(ctx)
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
	quotas, err := x.s.store.Quotas(ctx)
	if err != nil {
		return err
	}
	tenants, _, err := x.s.store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		if q := quotas[t.ProductID]; q.Count != counts[t.ProductID] || q.Index == 0 {
			if err := x.s.store.CorrectQuota(ctx, t.ProductID, q, counts[t.ProductID]); err != nil {
				return err
			}
		}
	}
	return nil
}

// markDeleted says in Vault that a product is deleted. What it was stays there, for
// an engine of it that turns up.
func (s *Scheduler) markDeleted(ctx context.Context, p *registry.Product) error {
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

// deletionTakes is longer than a deletion of a product takes that succeeds: after it,
// one that is there all the same was not deleted.
const deletionTakes = time.Minute

// witnessProduct writes the witness of a product's row into Vault, unless a later
// one is there. A product that is being deleted stays so, unless it was kept.
func (s *Scheduler) witnessProduct(ctx context.Context, p *registry.Product, kept bool) error {
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

// writeWitness writes a product's row into Vault beside what change makes of the
// witness that is there; it may be called again. false: it is to stay as it is.
func (s *Scheduler) writeWitness(ctx context.Context, p *registry.Product, change func(there *secrets.Product) (bool, error)) error {
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
