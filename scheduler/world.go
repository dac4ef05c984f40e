package scheduler

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

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
	rows        []*registry.Engine
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

// staleNodes is how old the view of the nodes may be for a pass: the event
// stream is not silent for longer (see the cluster's feed).
const staleNodes = 2 * time.Minute

// enginePrefix is what the names of jobs, volumes and services of engines begin
// with.
var enginePrefix = registry.JobID("")

// engineOf is the engine_id in the name of a job or volume.
func engineOf(name string) string {
	if id, registration := registry.VolumeOf(name); registration > 1 {
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
func wantsKey(row *registry.Engine) bool {
	return row.KeyVersion > 0 && row.Op == nil && row.State != registry.Destroying && row.Reason != engine.ReasonBrainMissing
}

// readOwners reads the secrets of the engines that the registry does not have: in a
// registry that is whole there is hardly one. While Vault is known to have gone
// back, it also asks for the key of every row.
func (s *Scheduler) readOwners(ctx context.Context, w *world) error {
	if !w.read(listKeys, listPool, listRows, listUnreachableVolumes, listQuarantine) {
		return nil // nothing is decided by them
	}
	held := maps.Clone(w.pooled)
	for _, row := range w.rows {
		held[row.EngineID] = true
	}
	for _, g := range w.unreachable {
		held[g.EngineID] = true
	}
	for _, q := range w.quarantine {
		held[q.EngineID] = true
	}
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, id := range w.keys {
		if held[id] {
			continue
		}
		work.Go(func() error {
			k, err := s.vault.NewestKey(ctx, id)
			if errors.Is(err, secrets.ErrNotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				w.owners[id] = k
			}
			return err
		})
	}
	if w.keysLost {
		w.keysMissing = map[string]bool{}
		for _, row := range w.rows {
			if !wantsKey(row) {
				continue
			}
			work.Go(func() error {
				has, err := s.vault.HasKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
				if err == nil && !has {
					mu.Lock()
					defer mu.Unlock()
					w.keysMissing[row.EngineID] = true
				}
				return err
			})
		}
	}
	return work.Wait()
}

// lookForLost notes the rows whose volume Nomad does not know. The list of volumes
// is older than that of rows: where one is missing, the volumes are listed once more.
func (s *Scheduler) lookForLost(ctx context.Context, w *world, pace cluster.Pace) {
	if !w.read(listVolumes, listRows) {
		return
	}
	lost := map[string]string{} // engine_ids by volume
	for _, row := range w.rows {
		if row.VolumeID != "" {
			lost[row.VolumeID] = row.EngineID
		}
	}
	for _, v := range w.volumes {
		delete(lost, v.ID)
	}
	if len(lost) == 0 {
		return
	}
	now, err := s.cluster.Volumes(ctx, pace)
	if err != nil {
		return // nothing is said that is not known
	}
	for _, v := range now {
		delete(lost, v.ID)
	}
	w.lost = make(map[string]bool, len(lost))
	for _, id := range lost {
		w.lost[id] = true
	}
}

// readIndexes holds the indexes against the rows of products and engines.
func (s *Scheduler) readIndexes(ctx context.Context, w *world) error {
	products, damaged, err := s.store.Products(ctx)
	if err != nil {
		w.missing[listProducts] = err
		return err
	}
	w.damagedProducts = damaged
	if !w.read(listRows) {
		return nil // nothing is decided by them
	}
	indexes, err := s.store.Indexes(ctx)
	if err != nil {
		return err
	}
	w.indexed = map[string][]string{}
	for _, u := range w.unreadable {
		w.indexed[u.Key] = indexes.EnginesOf(u)
	}
	w.faults = indexes.Faults(products, damaged, w.rows)
	return nil
}

// look reads the world. What cannot be read is missing in it.
func (s *Scheduler) look(ctx context.Context, suspects map[string]suspect, pace cluster.Pace) *world {
	w := &world{
		now: time.Now().UTC(), deployment: s.opts.Job.Deployment, deploymentID: s.guard.id(), grace: s.opts.OrphanGrace,
		suspects: suspects, missing: map[string]error{}, silent: map[string]bool{}, awake: map[string]bool{}, quarantined: map[string]bool{}, owners: map[string]*secrets.EngineKey{},
	}
	if record := s.guard.current(); record != nil {
		w.keysLost = record.KeysLost != nil
	}
	if age := s.cluster.Age(); age > staleNodes {
		w.missing[listNodes] = cluster.ErrUnavailable
	}
	type list struct {
		name string
		read func() error
	}
	// One after another, so that no store is asked for two at a time: calls that
	// come meanwhile hardly notice.
	for _, l := range []list{
		{listJobs, func() (err error) { w.jobs, err = s.cluster.Jobs(ctx, enginePrefix, pace); return err }},
		{listVolumes, func() (err error) { w.volumes, err = s.cluster.Volumes(ctx, pace); return err }},
		{listVariables, func() (err error) { w.variables, err = s.cluster.KeyHashes(ctx, enginePrefix, pace); return err }},
		{listKeys, func() (err error) { w.keys, err = s.vault.EngineIDs(ctx); return err }},
		{listOrphans, func() (err error) { w.orphans, err = s.store.Orphans(ctx); return err }},
		{listPool, func() (err error) { w.pooled, err = s.store.PoolIDs(ctx); return err }},
		{listRows, func() (err error) { w.rows, w.unreadable, err = s.store.Engines(ctx); return err }},
		{listUnreachableVolumes, func() (err error) { w.unreachable, w.damagedVolumes, err = s.store.UnreachableVolumes(ctx); return err }},
		{listIndexes, func() error { return s.readIndexes(ctx, w) }},
		{listQuarantine, func() (err error) { w.quarantine, err = s.store.Quarantine(ctx); return err }},
		{listQuotas, func() (err error) { w.quotas, err = s.store.Quotas(ctx); return err }},
		{listOwners, func() error { return s.readOwners(ctx, w) }},
	} {
		if err := l.read(); err != nil {
			w.missing[l.name] = err
		}
	}
	s.lookForLost(ctx, w, pace)
	for _, q := range w.quarantine {
		w.quarantined[q.EngineID] = true
	}
	for _, row := range w.rows {
		if row.Frozen != nil && s.health.Passes(row.Frozen.AllocID) {
			w.awake[row.EngineID] = true
		}
	}
	for _, v := range w.volumes {
		w.silent[v.NodeID] = s.nodeSilent(v.NodeID)
	}
	for _, j := range w.jobs {
		for _, node := range j.Live {
			w.silent[node] = s.nodeSilent(node)
		}
	}
	return w
}
