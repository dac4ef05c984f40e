package reconcile

import (
	"slices"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// planDamaged plans what to do about records of the registry that cannot be read, and about
// indexes that do not lead to their rows. Each concerns only one engine or one product; all
// others are planned as usual.
func (p *planner) planDamaged() {
	for _, u := range p.unreadable {
		p.planUnreadable(u)
	}
	for _, u := range p.damagedProducts {
		hasRows := slices.ContainsFunc(p.rows, func(row *engine.Row) bool { return row.ProductID == u.ProductID }) ||
			slices.ContainsFunc(p.unreadable, func(row *registry.Unreadable) bool { return row.ProductID == u.ProductID }) || !p.read(listRows)
		p.add(&Action{Act: ActRestoreProduct, Subject: "product", ProductID: u.ProductID, Why: "its record is damaged", damaged: u, hasRows: hasRows})
	}
	for _, u := range p.damagedVolumes {
		p.add(&Action{Act: ActForget, Subject: "unreachable_volume", EngineID: u.Name(), Why: "its record is damaged; the remains of the engine will be found as an orphan", damaged: u})
	}
	for _, f := range p.faults {
		p.add(&Action{Act: ActMend, Subject: "index", EngineID: f.EngineID, ProductID: f.ProductID, Why: f.Index + ": " + f.Why, fault: f})
	}
}

// planUnreadable plans for one row that cannot be read. Nothing of the engine that it may
// belong to is removed because of a missing row.
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
		act(ActReport, id, "its row is damaged; nothing can be done before all lists can be read")
	case p.keysLost:
		act(ActReport, id, "its row is damaged, and its witness may be missing because Vault went back in time")
	case p.quarantined[id]:
		act(ActReport, id, "its row is damaged, and it is quarantined until an admin decides")
	case id == "" && p.unowned():
		act(ActReport, id, "its row is damaged, and its engine is unknown")
	case id == "" || p.peek(id).empty():
		act(ActForget, id, "its row is damaged, and nothing of its engine exists")
	case u.ProductID == engine.WarmProduct && owned != "":
		act(ActForget, id, "its row is damaged, and it was never given to a user")
	default:
		act(ActRebuild, id, "its row is damaged")
	}
}

// enginesOf returns the engines that an unreadable row may belong to: owned is the one
// whose secret in Vault names this user, and ids are all that any record assigns to it.
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
		// Of two, take the one that the index names too, and otherwise always the same.
		if owned == "" || indexed[id] && !indexed[owned] || indexed[id] == indexed[owned] && id < owned {
			owned = id
		}
	}
	return owned, ids
}

// unowned reports whether this deployment has an object without a row whose owner no secret
// names.
func (p *planner) unowned() bool {
	for id, f := range p.found {
		if !f.empty() && !p.held(id) && !p.foreign(f) && (p.owners[id] == nil || p.owners[id].Owner == secrets.Owner{}) {
			return true
		}
	}
	return false
}
