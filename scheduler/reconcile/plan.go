package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
)

// Act is what a reconcile pass does about an object.
type Act string

// The acts of a pass.
const (
	// ActScaleToZero ends the process of an engine that is stopped or sleeping.
	ActScaleToZero Act = "scale_to_zero"
	// ActFail ends a provision that nobody continues.
	ActFail Act = "fail"
	// ActDestroy finishes a destroy that nobody continues.
	ActDestroy Act = "destroy"
	// ActExamine passes an engine that should run to the health monitor.
	ActExamine Act = "examine"
	// ActReport does nothing with an ambiguous object except report it to an operator.
	ActReport Act = "report"
	// ActWatchQuota records a count that differs from the rows. ActCorrectQuota corrects
	// one that differed in two passes.
	ActWatchQuota   Act = "watch_quota"
	ActCorrectQuota Act = "correct_quota"
	// ActMark sets a tombstone, ActKeep waits for its grace time or for a node, and
	// ActRemove removes its object. ActUnmark deletes a tombstone.
	ActMark   Act = "mark_orphan"
	ActKeep   Act = "keep_orphan"
	ActRemove Act = "remove_orphan"
	ActUnmark Act = "unmark_orphan"
	// ActRebuild writes the row of an engine that has a user but no row, ActCorrect one
	// that is older than its engine, and ActMissing marks that of an engine that no longer
	// exists. ActQuarantine leaves an engine with contradicting records to an admin, and
	// ActRelease deletes the quarantine of an engine that no longer exists.
	// ActRestoreProduct restores products, and ActDropPooled deletes entries of the pool
	// that were handed out.
	ActRebuild            = Act(witness.Rebuild)
	ActCorrect            = Act(witness.Correct)
	ActMissing            = Act(witness.Missing)
	ActQuarantine         = Act(witness.Quarantine)
	ActRelease        Act = "release_quarantine"
	ActRestoreProduct Act = "restore_product"
	ActDropPooled     Act = "drop_pooled"
	// ActForget deletes an unreadable record that is not needed, and ActMend corrects an
	// index that does not lead to its row.
	ActForget Act = "forget_damaged"
	ActMend   Act = "mend_index"
)

// Action is one action of a pass, with the version of its object.
type Action struct {
	Act Act
	// Subject is the kind of its object: "engine", "quota", "orphan", ...
	Subject                     string
	EngineID, ProductID, UserID string
	Why                         string

	row         *engine.Row
	found       *Found
	orphan      *registry.Orphan
	quarantined *registry.Quarantined
	quota       suspect
	damaged     *registry.Unreadable
	hasRows     bool // whether the product with the damaged record has engines
	fault       registry.Fault
}

func byKey(a, b *Action) int { return cmp.Compare(a.key(), b.key()) }

// key identifies the object of an action, for backoff and for logging once.
func (a *Action) key() string {
	return strings.Join([]string{string(a.Act), a.Subject, a.EngineID, a.ProductID, a.UserID, a.fault.Index}, "/")
}

// planner plans the actions of a pass. It is pure: the same world gives the same plan.
type planner struct {
	*world
	found    map[string]*Found
	byID     map[string]*engine.Row
	stranded map[string]bool
	twins    map[string][]*engine.Row // rows that share an engine_id, by that
	actions  []*Action

	// kept are the engine_ids that unreadable rows may have. nameless: the engine of one of
	// them is unknown.
	kept     map[string]bool
	nameless bool
}

func newPlanner(w *world) *planner {
	return &planner{
		world: w, found: map[string]*Found{}, byID: map[string]*engine.Row{}, stranded: map[string]bool{},
		twins: map[string][]*engine.Row{}, kept: map[string]bool{},
	}
}

// plan returns what to do about a world.
func plan(w *world) []*Action {
	p := newPlanner(w)
	p.collect()
	p.planDamaged()
	if w.read(listRows) {
		for _, row := range w.rows {
			p.planRow(row)
		}
		p.planQuotas()
	}
	p.planOrphans()
	slices.SortStableFunc(p.actions, byKey)
	return p.actions
}

func (p *planner) add(a *Action) { p.actions = append(p.actions, a) }

func (p *planner) at(id string) *Found {
	if p.found[id] == nil {
		p.found[id] = &Found{id: id}
	}
	return p.found[id]
}

// peek is like at, for concurrent readers.
func (p *planner) peek(id string) *Found {
	if f := p.found[id]; f != nil {
		return f
	}
	return &Found{id: id}
}

func (p *planner) collect() {
	for _, j := range p.jobs {
		p.at(engineOf(j.ID)).job = j
	}
	for _, v := range p.volumes {
		if name, _ := engine.ParseVolume(v.Name); name.Drill {
			continue // it is nobody's brain, and removed by whoever removes drills
		}
		if strings.HasPrefix(v.Name, enginePrefix) {
			f := p.at(engineOf(v.Name))
			f.volumes = append(f.volumes, v)
		}
	}
	for _, v := range p.variables {
		p.at(engineOf(v.JobID)).variable = v
	}
	for _, id := range p.keys {
		p.at(id).key = true
	}
	for _, row := range p.rows {
		if other := p.byID[row.EngineID]; other != nil {
			if p.twins[row.EngineID] == nil {
				p.twins[row.EngineID] = []*engine.Row{other}
			}
			p.twins[row.EngineID] = append(p.twins[row.EngineID], row)
		}
		p.byID[row.EngineID] = row
	}
	for _, g := range p.unreachable {
		p.stranded[g.EngineID] = true
	}
}

func (p *planner) held(id string) bool {
	return p.byID[id] != nil || p.kept[id] || p.pooled[id] || p.stranded[id] || p.quarantined[id]
}

// owns reports whether a job belongs to this deployment and to the engine in its name. Jobs
// of a version of the service without deployment ids have none.
func (p *planner) owns(j *cluster.JobInfo) bool {
	return j.Deployment == p.deployment && (j.DeploymentID == "" || j.DeploymentID == p.deploymentID) && j.EngineID == engineOf(j.ID)
}

// foreign reports whether the objects under an id do not belong to this deployment, or may
// not. An id with this deployment's prefix belongs to it, and so does one that has a secret
// below its mount, or that names the deployment by its id.
func (p *planner) foreign(f *Found) bool {
	if f.job != nil && (f.job.Deployment != p.deployment || f.job.DeploymentID != "" && f.job.DeploymentID != p.deploymentID) {
		return true
	}
	if k := p.owners[f.id]; k != nil && k.Owner.Deployment != "" && k.Owner.Deployment != p.deploymentID {
		return true
	}
	return !engine.MadeBy(f.id, p.deploymentID) && !f.key && (f.job == nil || f.job.DeploymentID == "")
}

// planQuotas compares the counts with the rows. If a count was the same, at the same index,
// in two successive passes, nothing was counted in between, so the rows that were read in
// between determine the right count.
func (p *planner) planQuotas() {
	if !p.read(listQuotas) {
		return
	}
	rows := map[string]int{}
	for _, row := range p.rows {
		if row.ProductID != engine.WarmProduct { // warm engines have no quota
			rows[row.ProductID]++
		}
	}
	for _, u := range p.unreadable { // they have a place in the quota, too
		if u.ProductID != engine.WarmProduct && u.ProductID != "" {
			rows[u.ProductID]++
		}
	}
	products := slices.Collect(maps.Keys(rows))
	for id := range p.quotas {
		if rows[id] == 0 {
			products = append(products, id)
		}
	}
	for _, id := range products {
		q := p.quotas[id] // missing: 0 at index 0
		if q.Count == rows[id] {
			continue
		}
		now := suspect{q, rows[id]}
		a := &Action{
			Act: ActWatchQuota, Subject: "quota", ProductID: id, quota: now,
			Why: fmt.Sprintf("it counts %d engines, but there are %d", q.Count, rows[id]),
		}
		if p.suspects[id] == now {
			a.Act = ActCorrectQuota
			a.Why += ", in two successive passes"
		}
		p.add(a)
	}
}
