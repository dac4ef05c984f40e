package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// planOrphans plans for objects that nothing in the registry refers to. Nothing is decided
// about them while a list is missing. What may contain a user's memory is never removed by
// the service itself: its row is rebuilt, or an admin decides.
func (p *planner) planOrphans() {
	if len(p.missing) > 0 {
		return
	}
	tombstones := map[string]*registry.Orphan{}
	for _, o := range p.orphans {
		tombstones[o.EngineID] = o
	}
	seen := map[string]bool{}
	for id := range p.pooled {
		if f := p.peek(id); f.key || f.job != nil || f.variable != nil {
			p.add(&Action{Act: ActDropPooled, Subject: "pool", EngineID: id, found: f, Why: "its volume is pooled, but it was handed out: there is " + f.String()})
		}
	}
	for _, f := range p.found {
		if p.held(f.id) || f.empty() || p.foreign(f) {
			continue
		}
		tombstone := tombstones[f.id]
		a := &Action{Subject: "orphan", EngineID: f.id, found: f, orphan: tombstone}
		if a.Act, a.Why = p.aboutOrphan(f, tombstone); a.Act == "" {
			continue
		}
		if k := p.owners[f.id]; k != nil {
			a.ProductID, a.UserID = k.Owner.ProductID, k.Owner.UserID
		}
		seen[f.id] = a.Act == ActMark || a.Act == ActKeep || a.Act == ActRemove || a.Act == ActReport
		p.add(a)
	}
	for id, tombstone := range tombstones {
		if !seen[id] {
			why := "nothing of it remains"
			switch {
			case p.held(id):
				why = "the registry has it again"
			case !p.peek(id).empty():
				why = "it may contain a user's memory"
			}
			p.add(&Action{Act: ActUnmark, Subject: "orphan", EngineID: id, orphan: tombstone, Why: why})
		}
	}
	for _, q := range p.quarantine {
		if p.peek(q.EngineID).empty() && p.byID[q.EngineID] == nil && !p.kept[q.EngineID] {
			p.add(&Action{Act: ActRelease, Subject: "quarantine", EngineID: q.EngineID, quarantined: q, Why: "nothing of it remains"})
		}
	}
}

// aboutOrphan returns what to do about an object without a row; "": nothing for now.
func (p *planner) aboutOrphan(f *Found, tombstone *registry.Orphan) (Act, string) {
	what := f.String()
	k := p.owners[f.id]
	switch {
	case len(f.volumes) > 1:
		return ActReport, fmt.Sprintf("there are %d volumes of its name, on %s", len(f.volumes), nodesOf(f.volumes))
	case f.job != nil && !p.owns(f.job):
		return ActReport, fmt.Sprintf("the job of its name names engine %q", f.job.EngineID)
	case f.whole() && k != nil && k.Owner.EngineID == f.id && witness.OfUser(k.Owner):
		return ActRebuild, what + " of a user, without a row"
	case f.whole() && (k == nil || k.Owner.EngineID != f.id):
		return ActQuarantine, what + "  without a row, and no secret names its owner"
	case p.keysLost:
		return "", "" // Vault went back in time, so a witness may be missing
	case p.nameless && (k == nil || k.Owner == secrets.Owner{}):
		return ActKeep, what + "  without a row, kept while there is a damaged row whose engine is unknown"
	case tombstone == nil || tombstone.FirstSeen.IsZero(): // or the tombstone cannot be read
		return ActMark, what + " without a row"
	}
	if left := p.grace - p.now.Sub(tombstone.FirstSeen); left > 0 {
		return ActKeep, fmt.Sprintf("%s without a row, kept for %s more", what, left.Round(time.Second))
	}
	for _, v := range f.volumes {
		if p.silent[v.NodeID] {
			return ActKeep, what + " without a row, kept until its node is back"
		}
	}
	if f.job != nil && slices.ContainsFunc(f.job.Live, func(node string) bool { return p.silent[node] }) {
		return ActKeep, what + " without a row, kept until its node is back"
	}
	return ActRemove, fmt.Sprintf("%s without a row since %s", what, tombstone.FirstSeen.UTC().Format(time.RFC3339))
}
