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

// proofTime is the minimum time that an operation waits for a proof: for a process that
// ends at SIGTERM, and for the node to begin.
const proofTime = 15 * time.Second

// errUnproven: a container of the engine may run, and its node does not prove that none
// does.
var errUnproven = errors.New("the node does not prove that no container of the engine runs")

// unprovenOf returns the allocations whose process may run although Nomad reports it as
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

// noteUnproven adds to the row the allocations whose end is not proved, and reports whether
// that changed it. Nomad forgets an allocation some time after its end, so the row must
// keep it.
func (s *Scheduler) noteUnproven(row *engine.Row, allocs []cluster.Alloc) (changed bool) {
	for _, id := range s.unprovenOf(allocs) {
		if !slices.Contains(row.Proven, id) && !slices.Contains(row.Unproven, id) {
			row.Unproven, changed = append(row.Unproven, id), true
		}
	}
	return changed
}

// prove makes sure that no container is left of allocations that Nomad reports as ended. If
// that cannot be proved in time, the error is that of an unresponsive node, and a destroy
// lists its volume as unreachable.
func (o *work) prove(ctx context.Context, allocs []cluster.Alloc) error {
	if o.s.noteUnproven(o.Row, allocs) {
		o.Log.Warn("the end of the engine's process is not proved", "allocations", o.Row.Unproven)
		if err := o.Save(ctx); err != nil {
			return err
		}
	}
	if len(o.Row.Unproven) == 0 {
		return nil
	}
	if err := o.Fence(ctx); err != nil { // an admin may have confirmed it since
		return err
	}
	until := o.drainUntil()
	if later := time.Now().Add(proofTime); until.Before(later) { // the wait before it may have used up the time
		until = later
	}
	err := o.WhileOwned(ctx, func(ctx context.Context) error {
		limited, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		names := make([]string, 0, len(o.Row.Unproven))
		for _, id := range o.Row.Unproven {
			names = append(names, o.Row.JobID()+"/"+id)
		}
		return o.s.prover.prove(limited, o.Row.NodeID, names)
	})
	switch {
	case err == nil:
		o.Log.Info("all processes of the engine on its node have ended", "allocations", o.Row.Unproven)
		o.Row.Unproven, o.Row.Proven = nil, o.s.unprovenOf(allocs)
		return nil
	case ctx.Err() != nil || !errors.Is(err, errUnproven):
		return err
	case o.Row.Op.Kind == engine.OpDestroy:
		o.Log.Warn("a container of a destroyed engine may run; its volume is kept until its node proves that none does", "error", err)
		return nil
	}
	return o.unconfirmed(ctx, err)
}

// vouch records an admin's confirmation that no process of engines is left on a node, for
// the processes whose end the node has not proved.
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
		return &engine.Error{Code: engine.BackendUnavailable, Message: "an operation changed one of the engines meanwhile; retry", Err: err, RetryAfter: engine.RetryBackend}
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

// proveUnreachable returns the unreachable volumes that may be deleted: those of which no
// container may run, or of which this is now proved.
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
				s.log.Debug("keeping an unreachable volume, because a container of its engine may run", "engine_id", g.EngineID, "error", err)
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

// warnOfUnprovable logs the nodes that run containers and could not prove their end if the
// docker daemon died.
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
			s.log.Warn("this node cannot prove that containers ended when its docker daemon dies or is restarted: enable the raw_exec driver of its Nomad agent, and do not set live-restore there before (docs/operations.md)", "node", n.Name)
		}
	}
}

// unprovable reports whether a node runs containers but no scripts of the service.
func unprovable(n *cluster.Node) bool {
	return n.Drivers[string(jobs.Docker)] && !n.Drivers[string(jobs.RawExec)]
}
