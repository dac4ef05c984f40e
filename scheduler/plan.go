package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
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

	row         *registry.Engine
	found       *found
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

// found is what there is under one engine_id outside the registry.
type found struct {
	id       string
	job      *cluster.JobInfo
	volumes  []*cluster.Volume
	variable *cluster.VariableInfo
	key      bool
}

// planner makes the actions of a pass. It is pure: the same world, the same
// plan.
type planner struct {
	*world
	found    map[string]*found
	byID     map[string]*registry.Engine
	stranded map[string]bool
	twins    map[string][]*registry.Engine // rows of which two or more name one engine_id
	actions  []*Action

	// kept are the engine_ids that rows which cannot be read may have. nameless: of one
	// nothing says which engine it is of.
	kept     map[string]bool
	nameless bool
}

func newPlanner(w *world) *planner {
	return &planner{
		world: w, found: map[string]*found{}, byID: map[string]*registry.Engine{}, stranded: map[string]bool{},
		twins: map[string][]*registry.Engine{}, kept: map[string]bool{},
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

func (p *planner) at(id string) *found {
	if p.found[id] == nil {
		p.found[id] = &found{id: id}
	}
	return p.found[id]
}

// peek is at for those who only look, at the same time as others.
func (p *planner) peek(id string) *found {
	if f := p.found[id]; f != nil {
		return f
	}
	return &found{id: id}
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
				p.twins[row.EngineID] = []*registry.Engine{other}
			}
			p.twins[row.EngineID] = append(p.twins[row.EngineID], row)
		}
		p.byID[row.EngineID] = row
	}
	for _, g := range p.unreachable {
		p.stranded[g.EngineID] = true
	}
}

// planRow looks at an engine. What an operation works on is the operation's.
func (p *planner) planRow(row *registry.Engine) {
	act := func(what Act, format string, args ...any) {
		p.add(&Action{
			Act: what, Subject: "engine", EngineID: row.EngineID, ProductID: row.ProductID, UserID: row.UserID,
			Why: fmt.Sprintf(format, args...), row: row.Clone(), found: p.at(row.EngineID),
		})
	}
	f := p.at(row.EngineID)
	if twins := p.twins[row.EngineID]; twins != nil {
		if what := ActReport; p.read(listQuarantine) {
			if !p.quarantined[row.EngineID] && row == twins[0] {
				what = ActQuarantine
			}
			act(what, "%s (%d rows)", whyTwins, len(twins))
		}
		return
	}
	if volumes := p.contenders(row, f); p.read(listVolumes) && len(volumes) > 1 {
		act(ActReport, "there are %d volumes of its name, on %s", len(volumes), nodesOf(volumes))
		return
	}
	if f.job != nil && !p.owns(f.job) {
		act(ActReport, "the job of its name says that it is engine %q of deployment %q", f.job.EngineID, f.job.Deployment)
		return
	}
	if p.lost[row.EngineID] && row.State != registry.Destroying && row.Reason != engine.ReasonBrainMissing {
		act(ActReport, "Nomad does not know its volume any more, which was on node %s: orch node adopt brings it back", row.NodeID)
	}
	if row.Op != nil {
		return
	}
	if !p.lost[row.EngineID] && (p.keysMissing[row.EngineID] || p.read(listKeys) && !f.key && row.KeyVersion > 0 && row.State != registry.Destroying && row.Reason != engine.ReasonBrainMissing) {
		act(ActReport, "its key is not in Vault any more: rotate-key (orch engine rekey) gives a running engine a new one, and its next start a stopped one")
	}
	if volumes := p.contenders(row, f); p.read(listVolumes) && row.VolumeID != "" && len(volumes) == 1 && volumes[0].ID != row.VolumeID {
		act(ActReport, "the volume of its name is %s, and its brain is %s", volumes[0].ID, row.VolumeID)
		return
	}
	switch row.State {
	case registry.Provisioning:
		act(ActFail, "it is provisioning and no operation works on it")
	case registry.Destroying:
		act(ActDestroy, "it is destroying and no operation works on it")
	case registry.Stopped, registry.Sleeping:
		switch {
		case !p.read(listJobs, listNodes):
		case row.Frozen != nil:
			if lost := processless(f.job); lost != "" && !p.silent[row.NodeID] {
				act(ActScaleToZero, "it is paused and %s", lost)
			} else if p.awake[row.EngineID] {
				act(ActScaleToZero, "it is paused and its check passes")
			}
		case f.job == nil:
		case f.job.Count > 0:
			act(ActScaleToZero, "it is %s and its job asks for %d processes", row.State, f.job.Count)
		case slices.ContainsFunc(f.job.Live, func(node string) bool { return !p.silent[node] }):
			act(ActScaleToZero, "it is %s and a process of it lives", row.State)
		}
	case registry.Running:
		if lost := processless(f.job); lost != "" && p.read(listJobs) {
			act(ActExamine, "it is running and %s", lost)
		}
	}
}

// contenders are the volumes of which each might be the brain of a row: without those
// of earlier registrations, on nodes that are lost, beside its own.
func (p *planner) contenders(row *registry.Engine, f *found) []*cluster.Volume {
	own := slices.IndexFunc(f.volumes, func(v *cluster.Volume) bool { return v.ID == row.VolumeID })
	if own < 0 {
		return f.volumes
	}
	return slices.DeleteFunc(slices.Clone(f.volumes), func(v *cluster.Volume) bool { return v.ID != row.VolumeID && p.silent[v.NodeID] })
}

// processless says why a job has no process; "" when it may have one.
func processless(job *cluster.JobInfo) string {
	switch {
	case job == nil:
		return "has no job"
	case job.Count == 0:
		return "its job asks for no process"
	case job.Count > 0 && len(job.Live) == 0:
		return "no process of it lives"
	}
	return ""
}

func nodesOf(volumes []*cluster.Volume) string {
	nodes := make([]string, 0, len(volumes))
	for _, v := range volumes {
		nodes = append(nodes, "node "+v.NodeID)
	}
	slices.Sort(nodes)
	return strings.Join(nodes, " and ")
}

// owns says whether a job is this deployment's and of the engine that its name
// says. Jobs of a version of the service that knew no ids of deployments have none.
func (p *planner) owns(j *cluster.JobInfo) bool {
	return j.Deployment == p.deployment && (j.DeploymentID == "" || j.DeploymentID == p.deploymentID) && j.EngineID == engineOf(j.ID)
}

// foreign says whether what there is under an id is not this deployment's, or not
// known to be. An id that begins as those of this deployment is its own; so is what
// has a secret below its mount, or names the deployment by its id.
func (p *planner) foreign(f *found) bool {
	if f.job != nil && (f.job.Deployment != p.deployment || f.job.DeploymentID != "" && f.job.DeploymentID != p.deploymentID) {
		return true
	}
	if k := p.owners[f.id]; k != nil && k.Owner.Deployment != "" && k.Owner.Deployment != p.deploymentID {
		return true
	}
	return !p.ours(f.id) && !f.key && (f.job == nil || f.job.DeploymentID == "")
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
		if row.ProductID != registry.WarmProduct { // which has no quota
			rows[row.ProductID]++
		}
	}
	for _, u := range p.unreadable { // which have a place in the quota, too
		if u.ProductID != registry.WarmProduct && u.ProductID != "" {
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

// ours says whether an engine_id was made by this deployment, by its beginning.
func (w *world) ours(id string) bool {
	return len(id) == idLength && w.deploymentID != "" && strings.HasPrefix(id, brand(w.deploymentID))
}

// planOrphans looks at what nobody in the registry has. Nothing is decided about
// it while any list is missing. What may hold somebody's memory is never removed by
// itself: its row is rebuilt, or an admin decides.
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
			p.add(&Action{Act: ActDropPooled, Subject: "pool", EngineID: id, found: f, Why: "its volume is pooled, and it was handed out: there is " + f.String()})
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
			why := "nothing of it is left"
			switch {
			case p.held(id):
				why = "the registry has it again"
			case !p.peek(id).empty():
				why = "it may hold somebody's memory"
			}
			p.add(&Action{Act: ActUnmark, Subject: "orphan", EngineID: id, orphan: tombstone, Why: why})
		}
	}
	for _, q := range p.quarantine {
		if p.peek(q.EngineID).empty() && p.byID[q.EngineID] == nil && !p.kept[q.EngineID] {
			p.add(&Action{Act: ActRelease, Subject: "quarantine", EngineID: q.EngineID, quarantined: q, Why: "nothing of it is left"})
		}
	}
}

// whole says whether what there is of an engine may hold somebody's memory: a
// volume that something else knows of, or a process.
func (f *found) whole() bool {
	return len(f.volumes) > 0 && (f.key || f.job != nil || f.variable != nil) || f.job != nil && len(f.job.Live) > 0
}

// aboutOrphan says what is to be done about something without a row; "": nothing,
// for now.
func (p *planner) aboutOrphan(f *found, tombstone *registry.Orphan) (Act, string) {
	what := f.String()
	k := p.owners[f.id]
	switch {
	case len(f.volumes) > 1:
		return ActReport, fmt.Sprintf("there are %d volumes of its name, on %s", len(f.volumes), nodesOf(f.volumes))
	case f.job != nil && !p.owns(f.job):
		return ActReport, fmt.Sprintf("the job of its name says that it is engine %q", f.job.EngineID)
	case f.whole() && k != nil && k.Owner.EngineID == f.id && ofUser(k.Owner):
		return ActRebuild, what + " of a user, without a row"
	case f.whole() && (k == nil || k.Owner.EngineID != f.id):
		return ActQuarantine, what + " without a row, and no secret says whose it is"
	case p.keysLost:
		return "", "" // Vault went back: a witness may be missing
	case p.nameless && (k == nil || k.Owner == secrets.Owner{}):
		return ActKeep, what + " without a row, kept while there is a damaged row of which nobody knows the engine"
	case tombstone == nil || tombstone.FirstSeen.IsZero(): // or one that cannot be read
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

func (p *planner) held(id string) bool {
	return p.byID[id] != nil || p.kept[id] || p.pooled[id] || p.stranded[id] || p.quarantined[id]
}

func (f *found) empty() bool {
	return f.job == nil && len(f.volumes) == 0 && f.variable == nil && !f.key
}

// String names what there is.
func (f *found) String() string { return strings.Join(f.parts(), ", ") }

func (f *found) parts() []string {
	var parts []string
	if f.job != nil {
		parts = append(parts, "job")
	}
	for range f.volumes {
		parts = append(parts, "volume")
	}
	if f.variable != nil {
		parts = append(parts, "variable")
	}
	if f.key {
		parts = append(parts, "key")
	}
	return parts
}
