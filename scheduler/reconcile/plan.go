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
)

// Act is what a reconcile pass does about something.
type Act string

// What a pass can do.
const (
	// ActScaleToZero ends the process of an engine that is stopped or sleeping.
	ActScaleToZero Act = "scale_to_zero"
	// ActFail ends a provisioning that nobody works on.
	ActFail Act = "fail"
	// ActDestroy finishes a destroy that nobody works on.
	ActDestroy Act = "destroy"
	// ActExamine hands an engine that should run to the health side.
	ActExamine Act = "examine"
	// ActReport refuses to touch what is ambiguous: an operator has to look.
	ActReport Act = "report"
	// ActWatchQuota notes a count that does not agree; ActCorrectQuota corrects
	// one that did not agree in two passes.
	ActWatchQuota   Act = "watch_quota"
	ActCorrectQuota Act = "correct_quota"
	// ActMark sets a tombstone, ActKeep waits for its time or for a node, and
	// ActRemove removes what it stands for. ActUnmark takes a tombstone away.
	ActMark   Act = "mark_orphan"
	ActKeep   Act = "keep_orphan"
	ActRemove Act = "remove_orphan"
	ActUnmark Act = "unmark_orphan"
	// ActRebuild writes the row of an engine that has a user and none, ActCorrect one
	// that is older than its engine, ActMissing that of an engine that is gone.
	// ActQuarantine leaves to an admin what contradicts itself, and ActRelease forgets
	// a quarantine of which nothing is left. ActRestoreProduct and ActDropPooled bring
	// products back, and take away entries of the pool that were handed out since.
	ActRebuild        Act = "rebuild"
	ActCorrect        Act = "correct"
	ActMissing        Act = "brain_missing"
	ActQuarantine     Act = "quarantine"
	ActRelease        Act = "release_quarantine"
	ActRestoreProduct Act = "restore_product"
	ActDropPooled     Act = "drop_pooled"
	// ActForget removes a record that cannot be read and that nothing needs, and ActMend
	// sets an index right that does not lead to its row.
	ActForget Act = "forget_damaged"
	ActMend   Act = "mend_index"
)

// Action is one act of a pass, with the incarnation of what it is about.
type Action struct {
	Act Act
	// Subject is what it is about: "engine", "quota", "orphan", ...
	Subject                     string
	EngineID, ProductID, UserID string
	Why                         string

	row         *engine.Row
	found       *Found
	orphan      *registry.Orphan
	quarantined *registry.Quarantined
	quota       suspect
	damaged     *registry.Unreadable
	hasRows     bool // the product whose record is damaged has engines
	fault       registry.Fault
}

func byKey(a, b *Action) int { return cmp.Compare(a.key(), b.key()) }

// key names what an action is about, for backoff and for "told once".
func (a *Action) key() string {
	return strings.Join([]string{string(a.Act), a.Subject, a.EngineID, a.ProductID, a.UserID, a.fault.Index}, "/")
}

// planner makes the actions of a pass. It is pure: the same world, the same
// plan.
type planner struct {
	*world
	found    map[string]*Found
	byID     map[string]*engine.Row
	stranded map[string]bool
	twins    map[string][]*engine.Row // rows of which two or more name one engine_id
	actions  []*Action

	// kept are the engine_ids that rows which cannot be read may have. nameless: of one
	// nothing says which engine it is of.
	kept     map[string]bool
	nameless bool
}

func newPlanner(w *world) *planner {
	return &planner{
		world: w, found: map[string]*Found{}, byID: map[string]*engine.Row{}, stranded: map[string]bool{},
		twins: map[string][]*engine.Row{}, kept: map[string]bool{},
	}
}

// plan says what is to be done about a world.
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

// peek is at for those who only look, at the same time as others.
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

// owns says whether a job is this deployment's and of the engine that its name
// says. Jobs of a version of the service that knew no ids of deployments have none.
func (p *planner) owns(j *cluster.JobInfo) bool {
	return j.Deployment == p.deployment && (j.DeploymentID == "" || j.DeploymentID == p.deploymentID) && j.EngineID == engineOf(j.ID)
}

// foreign says whether what there is under an id is not this deployment's, or not
// known to be. An id that begins as those of this deployment is its own; so is what
// has a secret below its mount, or names the deployment by its id.
func (p *planner) foreign(f *Found) bool {
	if f.job != nil && (f.job.Deployment != p.deployment || f.job.DeploymentID != "" && f.job.DeploymentID != p.deploymentID) {
		return true
	}
	if k := p.owners[f.id]; k != nil && k.Owner.Deployment != "" && k.Owner.Deployment != p.deploymentID {
		return true
	}
	return !engine.MadeBy(f.id, p.deploymentID) && !f.key && (f.job == nil || f.job.DeploymentID == "")
}

// planQuotas compares the counts with the rows. A count that was the same, at
// the same index, in two passes in a row did not count anything in between: the
// rows that were read in between are what it should say.
func (p *planner) planQuotas() {
	if !p.read(listQuotas) {
		return
	}
	rows := map[string]int{}
	for _, row := range p.rows {
		if row.ProductID != engine.WarmProduct { // which has no quota
			rows[row.ProductID]++
		}
	}
	for _, u := range p.unreadable { // which have a place in the quota, too
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
		q := p.quotas[id] // none: 0 at index 0
		if q.Count == rows[id] {
			continue
		}
		now := suspect{q, rows[id]}
		a := &Action{
			Act: ActWatchQuota, Subject: "quota", ProductID: id, quota: now,
			Why: fmt.Sprintf("it counts %d engines and there are %d", q.Count, rows[id]),
		}
		if p.suspects[id] == now {
			a.Act = ActCorrectQuota
			a.Why += ", twice in a row"
		}
		p.add(a)
	}
}
