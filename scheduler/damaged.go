package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// planDamaged says what is to be done about the records of the registry that cannot be
// read, and about indexes that do not lead to their rows. Each is a matter of one engine
// or one product: all others are planned as ever.
func (p *planner) planDamaged() {
	for _, u := range p.unreadable {
		p.planUnreadable(u)
	}
	for _, u := range p.damagedProducts {
		hasRows := slices.ContainsFunc(p.rows, func(row *registry.Engine) bool { return row.ProductID == u.ProductID }) ||
			slices.ContainsFunc(p.unreadable, func(row *registry.Unreadable) bool { return row.ProductID == u.ProductID }) || !p.read(listRows)
		p.add(&Action{Act: ActRestoreProduct, Subject: "product", ProductID: u.ProductID, Why: "its record is damaged", damaged: u, hasRows: hasRows})
	}
	for _, u := range p.damagedVolumes {
		p.add(&Action{Act: ActForget, Subject: "unreachable_volume", EngineID: u.Name(), Why: "its record is damaged; what is left of the engine is found again as an orphan", damaged: u})
	}
	for _, f := range p.faults {
		p.add(&Action{Act: ActMend, Subject: "index", EngineID: f.EngineID, ProductID: f.ProductID, Why: f.Index + ": " + f.Why, fault: f})
	}
}

// planUnreadable looks at one row that cannot be read. Nothing of the engine that it may
// be of is removed for want of a row.
func (p *planner) planUnreadable(u *registry.Unreadable) {
	act := func(what Act, id, why string) {
		p.add(&Action{Act: what, Subject: "engine", EngineID: id, ProductID: u.ProductID, UserID: u.UserID, Why: why, found: p.peek(id), damaged: u})
	}
	owned, ids := p.enginesOf(u)
	for _, id := range ids {
		p.kept[id] = true
	}
	id := owned
	if id == "" && len(ids) > 0 {
		id = ids[0]
	}
	if id == "" {
		p.nameless = true
	}
	switch {
	case u.Newer:
		act(ActReport, id, "a newer version of the service wrote its row, and this one cannot read it")
	case len(p.missing) > 0:
		act(ActReport, id, "its row is damaged; nothing is done about it before all lists can be read")
	case p.keysLost:
		act(ActReport, id, "its row is damaged; Vault went back in time, and a witness of it may be missing")
	case p.quarantined[id]:
		act(ActReport, id, "its row is damaged, and it is quarantined until an admin decides")
	case id == "" && p.unowned():
		act(ActReport, id, "its row is damaged, and nothing says which engine it was of")
	case id == "" || p.peek(id).empty():
		act(ActForget, id, "its row is damaged, and nothing is left of an engine of it")
	case u.ProductID == registry.WarmProduct && owned != "":
		act(ActForget, id, "its row is damaged, and nobody was given it")
	default:
		act(ActRebuild, id, "its row is damaged")
	}
}

// enginesOf are the engines that a row which cannot be read may be of: owned is the one
// that its secret in Vault says is this user's, ids are all that anything says it of.
func (p *planner) enginesOf(u *registry.Unreadable) (owned string, ids []string) {
	indexed := map[string]bool{}
	for _, id := range p.indexed[u.Key] {
		if p.byID[id] == nil {
			indexed[id] = true
			ids = append(ids, id)
		}
	}
	for id, k := range p.owners {
		own := secrets.Owner{Deployment: p.deploymentID, ProductID: u.ProductID, UserID: u.UserID, EngineID: id}
		if k.Owner != own || p.held(id) && !indexed[id] {
			continue
		}
		if !indexed[id] {
			ids = append(ids, id)
		}
		// Of two the one that the index names, too, and else always the same.
		if owned == "" || indexed[id] && !indexed[owned] || indexed[id] == indexed[owned] && id < owned {
			owned = id
		}
	}
	return owned, ids
}

// unowned says whether there is something of this deployment that no row has, and no
// secret says whose it is.
func (p *planner) unowned() bool {
	for id, f := range p.found {
		if !f.empty() && !p.held(id) && !p.foreign(f) && (p.owners[id] == nil || p.owners[id].Owner == secrets.Owner{}) {
			return true
		}
	}
	return false
}

// rebuildDamaged writes the row of an engine over one that cannot be read, from the
// engine's witnesses; where these contradict themselves, an admin decides.
func (s *Scheduler) rebuildDamaged(ctx context.Context, a *Action) error {
	w, err := s.witnessesOf(ctx, a.found, nil)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	x := &recovery{s: s, w: &world{now: now}, found: &planner{found: map[string]*found{a.EngineID: a.found}}, tenants: map[string]registry.Tenant{}}
	r := w.judgeLost(now, true) // there was a row
	switch r.act {
	case ActRebuild:
		return s.mending(ctx, a, func() error { return movedOn(x.rebuild(ctx, r, nil)) })
	case ActQuarantine:
		return x.quarantine(ctx, a.found, w, r.why)
	}
	return nil // the next pass knows what is left of it
}

// forgetDamaged removes a record that cannot be read and that nothing needs.
func (s *Scheduler) forgetDamaged(ctx context.Context, a *Action) error {
	return s.mending(ctx, a, func() error {
		if a.Subject == "engine" {
			return movedOn(s.store.RemoveUnreadable(ctx, a.damaged))
		}
		return movedOn(s.store.DeleteUnreadable(ctx, a.damaged))
	})
}

// restoreDamaged writes a product's row over one that cannot be read, as its witness in
// Vault has it.
func (s *Scheduler) restoreDamaged(ctx context.Context, a *Action) error {
	witness, err := s.vault.Product(ctx, a.ProductID)
	if err != nil {
		return err
	}
	switch {
	case witness.Deleted && !a.hasRows:
		return s.mending(ctx, a, func() error { return movedOn(s.store.DeleteUnreadable(ctx, a.damaged)) })
	case len(witness.Record) == 0:
		return fmt.Errorf("scheduler: the record of product %s is damaged, and Vault has no witness of it", a.ProductID)
	}
	return s.mending(ctx, a, func() error {
		x := &recovery{s: s}
		return movedOn(x.product(ctx, a.ProductID, witness, &registry.Product{ProductID: a.ProductID, Index: a.damaged.Index}))
	})
}

// mending makes a change that sets a damaged record right between the two halves of its
// audit row.
func (s *Scheduler) mending(ctx context.Context, a *Action, change func() error) error {
	began := time.Now().UTC()
	s.log.Warn("a record of the registry is damaged", "act", string(a.Act), "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "error", a.damaged.Err)
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began, ProductID: a.ProductID, UserID: a.UserID, EngineID: a.EngineID, Action: audit.ActionRegistryRecover, Actor: actorSystem,
		RequestID: RequestID(ctx), Metadata: map[string]any{"why": a.Why, "act": string(a.Act), "subject": a.Subject},
	})
	if err != nil {
		return err
	}
	err = change()
	s.abandon(ctx, id, began, err)
	return err
}

// announce has all replicas read the rows again that a pass found damaged, or twice, and
// that this replica's view does not know as such: what did that told nobody.
func (s *Scheduler) announce(ctx context.Context, w *world) {
	var err error
	if len(w.unreadable) > s.mirror.Unreadable("") {
		for _, u := range w.unreadable {
			err = errors.Join(err, s.store.Announce(ctx, u.ProductID, u.UserID))
		}
	}
	byID := map[string]*registry.Engine{}
	for _, row := range w.rows {
		if other := byID[row.EngineID]; other != nil && s.mirror.Twins(row.EngineID) == nil {
			err = errors.Join(err, s.store.Announce(ctx, row.ProductID, row.UserID), s.store.Announce(ctx, other.ProductID, other.UserID))
		}
		byID[row.EngineID] = row
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("damaged rows were not announced; the next pass does it", "error", err)
	}
}

// mendEvery is how often calls that come upon a damaged record ask for a pass.
const mendEvery = 2 * time.Second

// askToMend asks the leader for a pass at once when an error says that a record is
// damaged, and returns the error.
func (s *Scheduler) askToMend(err error) error {
	var u *registry.Unreadable
	if !errors.As(err, &u) || u.Newer {
		return err
	}
	now := time.Now()
	if last := s.mendAsked.Load(); now.UnixNano()-last > int64(mendEvery) && s.mendAsked.CompareAndSwap(last, now.UnixNano()) {
		s.background(func(ctx context.Context) {
			if err := s.store.RequestReconcile(ctx); err != nil && ctx.Err() == nil {
				s.log.Debug("the leader was not asked for a pass", "error", err)
			}
		})
	}
	return err
}
