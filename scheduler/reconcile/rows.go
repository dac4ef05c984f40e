package reconcile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// WhyTwins is the reason for the quarantine of an engine that two rows name. The quarantine
// ends by itself when only one of them is left.
const WhyTwins = "two rows name this engine_id, and at most one of them is right"

// planRow plans for one engine. An engine with an operation is left to the operation.
func (p *planner) planRow(row *engine.Row) {
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
			act(what, "%s (%d rows)", WhyTwins, len(twins))
		}
		return
	}
	if volumes := p.contenders(row, f); p.read(listVolumes) && len(volumes) > 1 {
		act(ActReport, "there are %d volumes of its name, on %s", len(volumes), nodesOf(volumes))
		return
	}
	if f.job != nil && !p.owns(f.job) {
		act(ActReport, "the job of its name names engine %q of deployment %q", f.job.EngineID, f.job.Deployment)
		return
	}
	if p.lost[row.EngineID] && row.State != engine.Destroying && row.Reason != engine.ReasonBrainMissing {
		act(ActReport, "Nomad no longer knows its volume, which was on node %s; restore it with orch node adopt", row.NodeID)
	}
	if row.Op != nil {
		return
	}
	if !p.lost[row.EngineID] && (p.keysMissing[row.EngineID] || p.read(listKeys) && !f.key && row.KeyVersion > 0 && row.State != engine.Destroying && row.Reason != engine.ReasonBrainMissing) {
		act(ActReport, "its key is no longer in Vault; a running engine gets a new one from rotate-key (orch engine rekey), a stopped one at its next start")
	}
	if volumes := p.contenders(row, f); p.read(listVolumes) && row.VolumeID != "" && len(volumes) == 1 && volumes[0].ID != row.VolumeID {
		act(ActReport, "the volume of its name is %s, but its brain is %s", volumes[0].ID, row.VolumeID)
		return
	}
	switch row.State {
	case engine.Provisioning:
		act(ActFail, "it is provisioning, but has no operation")
	case engine.Destroying:
		act(ActDestroy, "it is destroying, but has no operation")
	case engine.Stopped, engine.Sleeping:
		switch {
		case !p.read(listJobs, listNodes):
		case row.Frozen != nil:
			if lost := processless(f.job); lost != "" && !p.silent[row.NodeID] {
				act(ActScaleToZero, "it is paused, but %s", lost)
			} else if p.awake[row.EngineID] {
				act(ActScaleToZero, "it is paused, but its check passes")
			}
		case f.job == nil:
		case f.job.Count > 0:
			act(ActScaleToZero, "it is %s, but its job requests %d processes", row.State, f.job.Count)
		case slices.ContainsFunc(f.job.Live, func(node string) bool { return !p.silent[node] }):
			act(ActScaleToZero, "it is %s, but a process of it runs", row.State)
		}
	case engine.Running:
		if lost := processless(f.job); lost != "" && p.read(listJobs) {
			act(ActExamine, "it is running, but %s", lost)
		}
	}
}

// contenders returns the volumes that might be the brain of a row: without those of earlier
// registrations, on lost nodes, besides its own, and without those that a restore makes or
// has left.
func (p *planner) contenders(row *engine.Row, f *Found) []*cluster.Volume {
	own := slices.IndexFunc(f.volumes, func(v *cluster.Volume) bool { return v.ID == row.VolumeID })
	if own < 0 {
		return f.volumes
	}
	left := func(v *cluster.Volume) bool {
		if row.Op != nil && row.Op.Restoring != nil {
			return true
		}
		return p.silent[v.NodeID] || row.HasLeft(v.ID)
	}
	return slices.DeleteFunc(slices.Clone(f.volumes), func(v *cluster.Volume) bool { return v.ID != row.VolumeID && left(v) })
}

// processless returns why a job has no process; "" if it may have one.
func processless(job *cluster.JobInfo) string {
	switch {
	case job == nil:
		return "it has no job"
	case job.Count == 0:
		return "its job requests no process"
	case job.Count > 0 && len(job.Live) == 0:
		return "no process of it runs"
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
