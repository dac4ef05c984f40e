package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// NodeAdoption is the result of AdoptNode.
type NodeAdoption struct {
	// Adopted engines have a volume again. Left are engines for a later call, because an
	// operation is in progress or there are many. Cleared are destroyed engines whose data
	// was removed from the node.
	Adopted, Left, Cleared int
	Failed                 []NotAdopted
}

// NotAdopted is an engine that was not changed, or a destroyed one whose data is still there,
// and the reason.
type NotAdopted struct{ EngineID, Why string }

const (
	// adoptMost limits the number of engines per call, and adopters the number of engines
	// that are adopted concurrently.
	adoptMost = 500
	adopters  = 8
	// clearFor is how long a call starts to remove the data of further destroyed engines.
	clearFor = 15 * time.Second
	// reportTimeout limits the wait for a node to report its new volumes: 3 to 7 s
	// (measured).
	reportTimeout = 30 * time.Second
)

// AdoptNode gives engines whose volume Nomad has lost a volume on the node to, where the
// directories of their brains are. from is the node in the rows. If it is equal to to,
// Nomad's servers lost their state: the engines are those whose volume they do not know.
// Otherwise the node's agent lost its state and registered as another node, to: the engines
// are all those of from, which must be gone.
//
// Nothing is started before all processes of these engines on the node have ended. A job of
// the service makes sure of that (endProcesses), or the caller confirms with processesEnded
// that the node was rebooted or its containers were ended. Engines that were running are
// then started by the service. With the caller's confirmation, even containers count as
// ended whose end the node has not proved (Engine.Unproven), whatever their volume.
//
// The call may be repeated, and continues. INVALID_REQUEST: to is unknown or not up, from
// is up, or the node cannot run the job and processesEnded is not set. STOP_UNCONFIRMED:
// processes are left; nothing was changed. BACKEND_UNAVAILABLE.
func (s *Scheduler) AdoptNode(ctx context.Context, from, to string, processesEnded bool) (*NodeAdoption, error) {
	if err := s.mayBegin(ctx, "consul", "nomad"); err != nil {
		return nil, err
	}
	on, err := s.adoptable(ctx, from, to)
	if err != nil {
		return nil, err
	}
	if processesEnded && from == to {
		if err := s.vouch(ctx, to); err != nil {
			return nil, err
		}
	}
	rows, unreachable, err := s.stranded(ctx, from, from == to)
	if err != nil {
		return nil, err
	}
	done := &NodeAdoption{}
	var take []*adoptee
	for _, row := range rows {
		if !mayAdopt(row) || len(take) == adoptMost {
			done.Left++
			continue
		}
		take = append(take, &adoptee{row: row, path: cmp.Or(pathOn(on, row.VolumeID, row.Volume()), row.VolumePath)})
	}
	if more := len(unreachable) - adoptMost; more > 0 {
		done.Left, unreachable = done.Left+more, unreachable[:adoptMost]
	}
	if len(take)+len(unreachable) == 0 {
		return done, nil
	}
	take = s.each(ctx, take, done, s.silence)
	var jobIDs []string
	for _, a := range take {
		jobIDs = append(jobIDs, a.row.JobID())
	}
	for _, g := range unreachable {
		jobIDs = append(jobIDs, engine.JobID(g.EngineID))
	}
	if !processesEnded {
		quiet, err := s.restartQuiet()
		if err == nil {
			err = s.endProcesses(ctx, to, jobIDs, quiet)
		}
		if errors.Is(err, errNoScripts) {
			return nil, engine.Errorf(engine.InvalidRequest, "node %s has no raw_exec driver, so the service cannot end processes that may still run there: end the engines' containers or reboot the node, and confirm it (processes_ended)", to)
		}
		if err != nil {
			return nil, err
		}
	}
	take = s.each(ctx, take, done, func(ctx context.Context, a *adoptee) error { return s.register(ctx, a, from, to) })
	if err := s.awaitReported(ctx, to, take); err != nil {
		for _, a := range take {
			s.abandon(ctx, a.auditID, a.began, err)
		}
		return nil, err
	}
	take = s.each(ctx, take, done, func(ctx context.Context, a *adoptee) error { return s.moveTo(ctx, a, from, to) })
	done.Adopted = len(take)
	s.clearUnreachable(ctx, unreachable, to, on, done)
	slices.SortFunc(done.Failed, func(a, b NotAdopted) int { return cmp.Compare(a.EngineID, b.EngineID) })
	s.log.Info("adopted the engines of a node", "from", from, "to", to, "adopted", done.Adopted, "left", done.Left, "failed", len(done.Failed), "cleared", done.Cleared)
	return done, nil
}

// adoptable checks that engines of one node can be adopted by another, and returns the
// volumes that the other one reports.
func (s *Scheduler) adoptable(ctx context.Context, from, to string) (map[string]cluster.NodeVolume, error) {
	node, err := s.cluster.ReadNode(ctx, to)
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		return nil, engine.Errorf(engine.InvalidRequest, "Nomad does not know node %s: check the id, or restart the node's Nomad agent", to)
	case err != nil:
		return nil, err
	case node.Down:
		return nil, engine.Errorf(engine.InvalidRequest, "node %s does not report to Nomad's servers: restart its agent", to)
	}
	if from != to {
		old, err := s.cluster.ReadNode(ctx, from)
		if err != nil && !errors.Is(err, cluster.ErrNotFound) {
			return nil, err
		}
		if err == nil && !old.Down {
			return nil, engine.Errorf(engine.InvalidRequest, "node %s is up: another node can adopt its engines only if it is gone", from)
		}
	}
	return s.cluster.NodeVolumes(ctx, to)
}

// stranded returns the rows and unreachable volumes of a node that have no usable volume.
// lost: only those whose volume Nomad does not know. Engines that are being destroyed are
// skipped, because they leave an unreachable volume.
func (s *Scheduler) stranded(ctx context.Context, nodeID string, lost bool) (rows []*engine.Row, unreachable []*registry.UnreachableVolume, err error) {
	volumes, err := s.cluster.Volumes(ctx, cluster.Unthrottled)
	if err != nil {
		return nil, nil, err
	}
	known := map[string]bool{}
	for _, v := range volumes {
		known[v.ID] = lost
	}
	all, _, err := s.store.Engines(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, row := range all {
		if row.NodeID == nodeID && row.VolumeID != "" && !known[row.VolumeID] && row.State != engine.Destroying && row.Reason != engine.ReasonBrainMissing {
			rows = append(rows, row.Clone())
		}
	}
	listed, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, g := range listed {
		if g.NodeID == nodeID && !known[g.VolumeID] {
			unreachable = append(unreachable, g)
		}
	}
	return rows, unreachable, nil
}

// pathOn returns the directory of a volume on a node; "": the node does not report the
// volume.
func pathOn(on map[string]cluster.NodeVolume, volumeID, name string) string {
	for _, v := range on {
		if v.ID == volumeID {
			return v.Path
		}
	}
	return on[name].Path
}

// each calls do for each engine, and returns the engines for which it succeeded. The
// reasons for the others are added to done.
func (s *Scheduler) each(ctx context.Context, take []*adoptee, done *NodeAdoption, do func(context.Context, *adoptee) error) []*adoptee {
	errs := make([]error, len(take))
	var work errgroup.Group
	work.SetLimit(adopters)
	for i, a := range take {
		work.Go(func() error { errs[i] = do(ctx, a); return nil })
	}
	_ = work.Wait() // the errors are recorded
	var ok []*adoptee
	for i, a := range take {
		err := errs[i]
		if err == nil {
			ok = append(ok, a)
			continue
		}
		s.abandon(ctx, a.auditID, a.began, err)
		if errors.Is(err, registry.ErrConflict) || errors.Is(err, cluster.ErrConflict) || errors.Is(err, registry.ErrNotFound) {
			done.Left++
			continue
		}
		s.log.Warn("an engine was not adopted", "engine_id", a.row.EngineID, "error", err)
		done.Failed = append(done.Failed, NotAdopted{a.row.EngineID, whyNot(err)})
	}
	return ok
}

// whyNot returns the reason, for an admin, why an engine was not adopted.
func whyNot(err error) string {
	if errors.Is(err, cluster.ErrNoDirectory) {
		return "the directory of its brain is not on the node"
	}
	return AsError(err).Message
}
