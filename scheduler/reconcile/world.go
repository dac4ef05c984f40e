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

// world is the content of all stores at about one moment, from which a reconcile pass
// decides. The planner does not change it.
type world struct {
	now          time.Time
	deployment   string // this deployment's name in the meta of its jobs
	deploymentID string // its id, which begins with the prefix of its engine_ids
	grace        time.Duration

	// The objects in Nomad and Vault, including those of other deployments. They are read
	// before the registry, so that an object with a row never seems to have none.
	jobs      []*cluster.JobInfo
	volumes   []*cluster.Volume
	variables []*cluster.VariableInfo
	keys      []string        // engine_ids
	silent    map[string]bool // nodes above that do not report to the servers
	awake     map[string]bool // engine_ids of paused engines whose check passes

	// The registry: the pool before the rows before the unreachable volumes, in the order
	// in which an engine_id passes through them.
	orphans     []*registry.Orphan
	pooled      map[string]bool // engine_ids
	rows        []*engine.Row
	unreachable []*registry.UnreachableVolume
	// Unreadable records: rows with the engine_ids that the index has for them, by the
	// row's key; and indexes that do not lead to their rows.
	unreadable      []*registry.Unreadable
	damagedProducts []*registry.Unreadable
	damagedVolumes  []*registry.Unreadable
	indexed         map[string][]string
	faults          []registry.Fault
	quotas          map[string]registry.Quota
	// quarantine is what an admin must decide about.
	quarantine  []*registry.Quarantined
	quarantined map[string]bool // engine_ids

	// owners are the secrets of engines that the registry does not have, as far as they
	// were read.
	owners map[string]*secrets.EngineKey
	// keysLost: Vault went back in time. keysMissing are the engines of rows whose key
	// Vault no longer has, as far as the rows were compared.
	keysLost    bool
	keysMissing map[string]bool

	// lost are the engine_ids of rows whose volume Nomad does not know.
	lost map[string]bool

	// suspects are the counts that differed in the previous pass.
	suspects map[string]suspect

	// missing names the lists that could not be read: that something is not in them then
	// means nothing.
	missing map[string]error
}

// suspect is a count of engines that differed from the rows.
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

// read reports whether all of some lists were read.
func (w *world) read(lists ...string) bool {
	for _, name := range lists {
		if w.missing[name] != nil {
			return false
		}
	}
	return true
}

// enginePrefix is the prefix of the names of engines' jobs, volumes and services.
var enginePrefix = engine.JobID("")

// engineOf returns the engine_id in the name of a job or volume.
func engineOf(name string) string {
	if v, ok := engine.ParseVolume(name); ok {
		return v.EngineID
	}
	return strings.TrimPrefix(name, enginePrefix)
}

// withoutVolume returns the engine_ids of the volume pool that seem to have no volume.
// Volumes that were created while the lists were read are among them.
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

// lostKeys returns how many rows have no key in Vault, as far as that was compared.
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

// wantsKey reports whether a row names a key that must exist.
func wantsKey(row *engine.Row) bool {
	return row.KeyVersion > 0 && row.Op == nil && row.State != engine.Destroying && row.Reason != engine.ReasonBrainMissing
}
