package reconcile

import (
	"maps"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// world is what all stores say at about one moment: what a reconcile pass
// decides from. The planner changes nothing in it.
type world struct {
	now          time.Time
	deployment   string // this deployment's name in the meta of its jobs
	deploymentID string // and its id, with which its engine_ids begin
	grace        time.Duration

	// What there is in Nomad and Vault, other deployments' included; read before
	// the registry, so that what has a row is never taken for something without.
	jobs      []*cluster.JobInfo
	volumes   []*cluster.Volume
	variables []*cluster.VariableInfo
	keys      []string        // engine_ids
	silent    map[string]bool // nodes that the servers do not hear from, of those above
	awake     map[string]bool // engine_ids of paused engines whose check passes

	// What the registry says: the pool before the rows before the unreachable volumes, as an
	// engine_id passes through them.
	orphans     []*registry.Orphan
	pooled      map[string]bool // engine_ids
	rows        []*engine.Row
	unreachable []*registry.UnreachableVolume
	// What of it cannot be read: rows with the engine_ids that the index has for them, by
	// the row's key; and indexes that do not lead to their rows.
	unreadable      []*registry.Unreadable
	damagedProducts []*registry.Unreadable
	damagedVolumes  []*registry.Unreadable
	indexed         map[string][]string
	faults          []registry.Fault
	quotas          map[string]registry.Quota
	// quarantine is what an admin has to decide about.
	quarantine  []*registry.Quarantined
	quarantined map[string]bool // engine_ids

	// owners are the secrets of engines that the registry does not have, as far as
	// they were read.
	owners map[string]*secrets.EngineKey
	// keysLost: Vault went back in time; keysMissing are the engines of rows whose key
	// it does not have any more, as far as the rows were compared.
	keysLost    bool
	keysMissing map[string]bool

	// lost are the engine_ids of rows whose volume Nomad does not know.
	lost map[string]bool

	// suspects are the counts that did not agree in the pass before.
	suspects map[string]suspect

	// missing names the lists that could not be read: "not in this answer" says
	// nothing then.
	missing map[string]error
}

// suspect is a count of engines that did not agree with the rows.
type suspect struct {
	quota registry.Quota
	rows  int
}

// The names of a world's lists.
const (
	listJobs               = "jobs"
	listVolumes            = "volumes"
	listVariables          = "variables"
	listKeys               = "keys"
	listNodes              = "nodes"
	listOrphans            = "tombstones"
	listPool               = "pool"
	listRows               = "rows"
	listUnreachableVolumes = "unreachable_volumes"
	listQuotas             = "quotas"

	listQuarantine = "quarantine"
	listOwners     = "owners"
	listProducts   = "products"
	listIndexes    = "indexes"
)

// read says whether all of some lists were read.
func (w *world) read(lists ...string) bool {
	for _, name := range lists {
		if w.missing[name] != nil {
			return false
		}
	}
	return true
}

// enginePrefix is what the names of jobs, volumes and services of engines begin
// with.
var enginePrefix = engine.JobID("")

// engineOf is the engine_id in the name of a job or volume.
func engineOf(name string) string {
	if id, registration := engine.VolumeOf(name); registration > 1 {
		return id
	}
	return strings.TrimPrefix(name, enginePrefix)
}

// withoutVolume are the engine_ids of the volume pool for which there is no volume, as
// it seems: one that was made while the lists were read is among them.
func (w *world) withoutVolume() map[string]bool {
	if !w.read(listVolumes, listPool) {
		return nil
	}
	lost := maps.Clone(w.pooled)
	for _, v := range w.volumes {
		delete(lost, engineOf(v.Name))
	}
	return lost
}

// lostKeys is how many rows have no key in Vault, as far as that was compared.
func (w *world) lostKeys() int {
	if w.keysMissing != nil {
		return len(w.keysMissing)
	}
	has := make(map[string]bool, len(w.keys))
	for _, id := range w.keys {
		has[id] = true
	}
	n := 0
	for _, row := range w.rows {
		if wantsKey(row) && !has[row.EngineID] {
			n++
		}
	}
	return n
}

// wantsKey says whether a row names a key that has to be there.
func wantsKey(row *engine.Row) bool {
	return row.KeyVersion > 0 && row.Op == nil && row.State != engine.Destroying && row.Reason != engine.ReasonBrainMissing
}
