package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

// proofTime is how long an operation waits for a proof at least: a process that ends at
// SIGTERM, and some time for the node to begin.
const proofTime = 15 * time.Second

// errUnproven: a container of the engine may run, and its node does not prove that
// none does.
var errUnproven = errors.New("the node does not prove that no container of the engine runs")

// unprovenOf are the allocations whose process may run although Nomad takes it for
// ended.
func (s *Scheduler) unprovenOf(allocs []cluster.Alloc) (ids []string) {
	for _, a := range allocs {
		open := s.opts.Job.Driver == jobs.Docker && a.Unproven || s.opts.Job.Driver == jobs.RawExec && a.Orphaned
		if a.Terminal() && open {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

// noteUnproven has the row name what is not proved to have ended, and reports whether
// that is news. Nomad forgets an allocation some time after its end; the row does not.
func (s *Scheduler) noteUnproven(row *engine.Row, allocs []cluster.Alloc) (changed bool) {
	for _, id := range s.unprovenOf(allocs) {
		if !slices.Contains(row.Proven, id) && !slices.Contains(row.Unproven, id) {
			row.Unproven, changed = append(row.Unproven, id), true
		}
	}
	return changed
}

// prove makes sure that no container is left of allocations which Nomad takes for
// ended. What is not proved in time is refused as that of a silent node is, and a
// destroy lists its volume as unreachable.
func (o *operation) prove(ctx context.Context, allocs []cluster.Alloc) error {
	if o.s.noteUnproven(o.row, allocs) {
		o.log.Warn("nobody vouches for the end of the engine's process", "allocations", o.row.Unproven)
		if err := o.save(ctx); err != nil {
			return err
		}
	}
	if len(o.row.Unproven) == 0 {
		return nil
	}
	if err := o.fence(ctx); err != nil { // an admin may have vouched for it since
		return err
	}
	until := o.drainUntil()
	if later := time.Now().Add(proofTime); until.Before(later) { // the wait before it may have taken all
		until = later
	}
	err := o.whileOwned(ctx, func(ctx context.Context) error {
		limited, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		names := make([]string, 0, len(o.row.Unproven))
		for _, id := range o.row.Unproven {
			names = append(names, o.row.JobID()+"/"+id)
		}
		return o.s.prover.prove(limited, o.row.NodeID, names)
	})
	switch {
	case err == nil:
		o.log.Info("no process of the engine is left on its node", "allocations", o.row.Unproven)
		o.row.Unproven, o.row.Proven = nil, o.s.unprovenOf(allocs)
		return nil
	case ctx.Err() != nil || !errors.Is(err, errUnproven):
		return err
	case o.row.Op.Kind == engine.OpDestroy:
		o.log.Warn("a container of a destroyed engine may run; its volume is left until its node proves that none does", "error", err)
		return nil
	}
	return o.unconfirmed(ctx, err)
}

// vouch takes an admin's word that no process of engines is left on a node, for those
// of which the node has not proved it.
func (s *Scheduler) vouch(ctx context.Context, nodeID string) error {
	rows, _, err := s.store.Engines(ctx)
	if err != nil {
		return err
	}
	unreachable, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range rows {
		if row.NodeID == nodeID && len(row.Unproven) > 0 {
			row = row.Clone()
			row.Unproven, row.Proven = nil, append(row.Proven, row.Unproven...)
			errs = append(errs, s.store.Update(ctx, row))
		}
	}
	for _, g := range unreachable {
		if g.NodeID == nodeID && g.Unproven {
			g.Unproven = false
			errs = append(errs, s.store.UpdateUnreachableVolume(ctx, g))
		}
	}
	err = errors.Join(errs...)
	if errors.Is(err, registry.ErrConflict) {
		return &engine.Error{Code: engine.BackendUnavailable, Message: "an operation changed one of the engines meanwhile; try again", Err: err, RetryAfter: retryBackend}
	}
	return err
}

// proveOrphan makes sure that no container is left of a job without a row.
func (s *Scheduler) proveOrphan(ctx context.Context, jobID string, allocs []cluster.Alloc) error {
	on := map[string][]string{}
	for _, a := range allocs {
		if len(s.unprovenOf([]cluster.Alloc{a})) > 0 {
			on[a.NodeID] = append(on[a.NodeID], jobID+"/"+a.ID)
		}
	}
	for node, names := range on {
		if err := s.prover.prove(ctx, node, names); err != nil {
			return err
		}
	}
	return nil
}

// proveUnreachable returns the unreachable volumes whose volume may be deleted: those of which no
// container may run, or which it was proved of now.
func (s *Scheduler) proveUnreachable(ctx context.Context, unreachable []*registry.UnreachableVolume) []*registry.UnreachableVolume {
	ok := make([]bool, len(unreachable))
	var work errgroup.Group
	for i, g := range unreachable {
		if ok[i] = !g.Unproven; ok[i] {
			continue
		}
		work.Go(func() error {
			limited, cancel := context.WithTimeout(ctx, endTimeout)
			defer cancel()
			err := s.prover.prove(limited, g.NodeID, []string{engine.JobID(g.EngineID)})
			if ok[i] = err == nil; !ok[i] {
				s.log.Debug("an unreachable volume stays: a container of its engine may run", "engine_id", g.EngineID, "error", err)
			}
			return nil
		})
	}
	_ = work.Wait() // none returns an error
	var proven []*registry.UnreachableVolume
	for i, g := range unreachable {
		if ok[i] {
			proven = append(proven, g)
		}
	}
	return proven
}

// warnOfUnprovable names the nodes that run containers and could not prove that they
// ended, should their docker daemon die.
func (s *Scheduler) warnOfUnprovable(ctx context.Context) {
	if s.opts.Job.Driver != jobs.Docker {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-s.cluster.Synced():
	}
	for _, n := range s.cluster.Nodes() {
		if unprovable(&n) {
			s.log.Warn("this node cannot prove that containers ended when its docker daemon dies or is restarted: turn the raw_exec driver of its Nomad agent on, and until then do not set live-restore there (docs/operations.md)", "node", n.Name)
		}
	}
}

// unprovable says whether a node runs containers and no scripts of the service.
func unprovable(n *cluster.Node) bool {
	return n.Drivers[string(jobs.Docker)] && !n.Drivers[string(jobs.RawExec)]
}
