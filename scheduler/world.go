package scheduler

import (
	"context"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// world is what all stores say at about one moment: what a reconcile pass
// decides from. The planner changes nothing in it.
type world struct {
	now        time.Time
	brand      string // of this deployment's engine_ids
	deployment string // in the meta of its jobs
	grace      time.Duration

	// What there is in Nomad and Vault, other deployments' included; read before
	// the registry, so that what has a row is never taken for something without.
	jobs      []*cluster.JobInfo
	volumes   []*cluster.Volume
	variables []*cluster.VariableInfo
	keys      []string        // engine_ids
	silent    map[string]bool // nodes that the servers do not hear from, of those above

	// What the registry says: the pool before the rows before the graves, as an
	// engine_id passes through them.
	orphans []*registry.Orphan
	pooled  map[string]bool // engine_ids
	rows    []*registry.Engine
	graves  []*registry.Grave
	quotas  map[string]registry.Quota
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
	listJobs      = "jobs"
	listVolumes   = "volumes"
	listVariables = "variables"
	listKeys      = "keys"
	listNodes     = "nodes"
	listOrphans   = "tombstones"
	listPool      = "pool"
	listRows      = "rows"
	listGraves    = "graves"
	listQuotas    = "quotas"
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
func engineOf(name string) string { return strings.TrimPrefix(name, enginePrefix) }

// look reads the world. What cannot be read is missing in it.
func (s *Scheduler) look(ctx context.Context, suspects map[string]suspect) *world {
	w := &world{
		now: time.Now().UTC(), brand: s.brand, deployment: s.opts.Job.Deployment, grace: s.opts.OrphanGrace,
		suspects: suspects, missing: map[string]error{}, silent: map[string]bool{},
	}
	if age := s.cluster.Age(); age > staleNodes {
		w.missing[listNodes] = cluster.ErrUnavailable
	}
	type list struct {
		name string
		read func() error
	}
	errs := map[string]*error{}
	both := func(lists ...list) {
		var group errgroup.Group
		for _, l := range lists {
			err := new(error)
			errs[l.name] = err
			group.Go(func() error { *err = l.read(); return nil })
		}
		_ = group.Wait() // each has its own
	}
	both(
		list{listJobs, func() (err error) { w.jobs, err = s.cluster.Jobs(ctx, enginePrefix); return err }},
		list{listVolumes, func() (err error) { w.volumes, err = s.cluster.Volumes(ctx); return err }},
		list{listVariables, func() (err error) { w.variables, err = s.cluster.KeyHashes(ctx, enginePrefix); return err }},
		list{listKeys, func() (err error) { w.keys, err = s.vault.EngineIDs(ctx); return err }},
		list{listOrphans, func() (err error) { w.orphans, err = s.store.Orphans(ctx); return err }},
	)
	for _, l := range []list{
		{listPool, func() (err error) { w.pooled, err = s.store.PoolIDs(ctx); return err }},
		{listRows, func() (err error) { w.rows, err = s.store.Engines(ctx); return err }},
		{listGraves, func() (err error) { w.graves, err = s.store.GravesNow(ctx); return err }},
		{listQuotas, func() (err error) { w.quotas, err = s.store.Quotas(ctx); return err }},
	} {
		both(l)
	}
	for _, v := range w.volumes {
		w.silent[v.NodeID] = s.nodeSilent(v.NodeID)
	}
	for _, j := range w.jobs {
		for _, node := range j.Live {
			w.silent[node] = s.nodeSilent(node)
		}
	}
	for name, err := range errs {
		if *err != nil {
			w.missing[name] = *err
		}
	}
	return w
}
