package scheduler

import (
	"fmt"
	"time"

	"github.com/septemberai/orch/engine"
)

// recoveryMargin is the time that a snapshot may take on top of two intervals until its engine
// counts as overdue.
const recoveryMargin = 15 * time.Minute

// Protection says how well the brains of a product, or of several, are protected by
// snapshots.
type Protection struct {
	// RecoveryPoint is the age of the oldest newest snapshot, among the engines whose policy
	// asks for snapshots and which have changed since; 0: there is none.
	RecoveryPoint time.Duration
	// Overdue counts such engines without a snapshot of the last two intervals and
	// recoveryMargin, and Without those that have none at all.
	Overdue, Without int
	// RecoveryTime is how long the last restore or drill took; of several products, the
	// longest. 0: there was none.
	RecoveryTime time.Duration
	// FailedDrills counts engines whose last drill failed. DrilledAt is when a drill last
	// succeeded; of several products, the oldest of these.
	FailedDrills int
	DrilledAt    time.Time
	// DrillsOverdue counts products with snapshots but without a successful drill for
	// drillsOverdue intervals.
	DrillsOverdue int
	// failed is the row of one of FailedDrills.
	failed *engine.Row
}

// Advice says what to do about failed drills; "": nothing.
func (p *Protection) Advice() string {
	if p.failed == nil {
		return ""
	}
	return fmt.Sprintf("the newest snapshot of %d engine(s) could not be restored in a drill, such as of engine %s: %s. Take a new snapshot of it (POST /engines/{user_id}/snapshots), which is tried at once, and look at the snapshot store; if that fails, too, restore an older one", p.FailedDrills, p.failed.EngineID, p.failed.Drill.Failure)
}

// Add adds another product.
func (p *Protection) Add(o Protection) {
	p.RecoveryPoint, p.RecoveryTime = max(p.RecoveryPoint, o.RecoveryPoint), max(p.RecoveryTime, o.RecoveryTime)
	p.Overdue, p.Without = p.Overdue+o.Overdue, p.Without+o.Without
	p.FailedDrills, p.DrillsOverdue = p.FailedDrills+o.FailedDrills, p.DrillsOverdue+o.DrillsOverdue
	if p.DrilledAt.IsZero() || !o.DrilledAt.IsZero() && o.DrilledAt.Before(p.DrilledAt) {
		p.DrilledAt = o.DrilledAt
	}
	if p.failed == nil {
		p.failed = o.failed
	}
}

// protection returns the protection of a product; drills is the interval of its drills, 0:
// there are none.
func protection(rows []*engine.Row, policy engine.Policy, drills time.Duration, now time.Time) (p Protection) {
	rule, asked := snapshotRuleOf(policy)
	var recovered, since time.Time // since when there are snapshots, at the latest
	for _, row := range rows {
		if r := row.Recovery; r != nil && r.At.After(recovered) {
			recovered, p.RecoveryTime = r.At, time.Duration(r.MS)*time.Millisecond
		}
		has := row.Snapshot != nil && row.Snapshot.ID != ""
		switch failed := row.Drill.Failed(); {
		case failed && drills > 0 && has: // otherwise it is never tried again
			p.FailedDrills++
			p.failed = row
		case !failed && row.Drill != nil && row.Drill.At.After(p.DrilledAt):
			p.DrilledAt = row.Drill.At
		}
		if has && (since.IsZero() || row.CreatedAt.Before(since)) {
			since = row.CreatedAt
		}
		if !asked || !hasBrain(row) || !changedSince(row) {
			continue
		}
		age := now.Sub(lastSnapshot(row))
		if !has {
			p.Without++
			age = now.Sub(row.CreatedAt)
		} else if age > p.RecoveryPoint {
			p.RecoveryPoint = age
		}
		if age > 2*rule.every+recoveryMargin {
			p.Overdue++
		}
	}
	if p.DrilledAt.After(since) {
		since = p.DrilledAt
	}
	if drills > 0 && !since.IsZero() && now.Sub(since) > drillsOverdue*drills {
		p.DrillsOverdue = 1
	}
	return p
}

// hasBrain reports whether an engine has a brain of which there can be a snapshot.
func hasBrain(row *engine.Row) bool {
	switch row.State {
	case engine.Running, engine.Stopped, engine.Sleeping, engine.Failed:
		return row.VolumeID != "" && row.Reason != engine.ReasonBrainMissing && row.Warm == ""
	}
	return false
}

// changedSince reports whether an engine may have changed since its newest snapshot. One that
// rests has not, since it came to rest.
func changedSince(row *engine.Row) bool {
	if row.State != engine.Stopped && row.State != engine.Sleeping {
		return true
	}
	rest := row.Last
	taken := rest != nil && (rest.Kind == engine.OpSnapshot || rest.Kind == engine.OpMove) && rest.Code == ""
	return !taken && (rest == nil || lastSnapshot(row).Before(rest.EndedAt))
}

// Protection returns the protection of the caller's product.
func (f *Fleet) Protection() Protection {
	return protection(f.s.mirror.Of(f.productID), f.policy, f.s.drillInterval(), time.Now())
}

// protections returns the protection of each product.
func (s *Scheduler) protections(products []*engine.Product) map[string]Protection {
	all := make(map[string]Protection, len(products))
	for _, p := range products {
		all[p.ProductID] = protection(s.mirror.Of(p.ProductID), p.Policy, s.drillInterval(), time.Now())
	}
	return all
}
