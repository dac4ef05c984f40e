package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// NodeAdoption is what a call of AdoptNode did.
type NodeAdoption struct {
	// Adopted engines have a volume again; Left are to be done by a later call, since
	// an operation is under way or there are many. Cleared are the destroyed engines
	// whose data was removed from the node.
	Adopted, Left, Cleared int
	Failed                 []NotAdopted
}

// NotAdopted is an engine that was left as it was, and why.
type NotAdopted struct{ EngineID, Why string }

const (
	// adoptMost bounds how many engines one call takes, and adopters how many it works
	// on at a time.
	adoptMost = 500
	adopters  = 8
	// clearFor is how long a call begins to remove the data of destroyed engines.
	clearFor = 15 * time.Second
	// reportTimeout bounds the wait for a node to report its new volumes: 3 to 7 s
	// (measured).
	reportTimeout = 30 * time.Second
)

// adoptee is an engine on its way to a new volume.
type adoptee struct {
	row    *registry.Engine
	path   string
	volume *cluster.Volume

	auditID int64
	began   time.Time
}

// AdoptNode gives engines whose volume Nomad has lost a volume again, on the node
// where the directories of their brains are. from is the node that the rows name. When
// it is to, Nomad's servers lost their state: the engines are those whose volume they
// do not know. Otherwise the node's agent lost its state and registered as another
// node, to: the engines are all those of from, which must be gone.
//
// Nothing is started before every process of these engines has ended on the node: a
// job of the service sees to that (endProcesses), or processesEnded is the caller's
// word that the node was rebooted, or its containers were ended. The engines that ran
// are then started by the service. On the caller's word, a container counts as ended of
// which the node has not proved that (Engine.Unproven), whatever its volume.
//
// The call may be repeated, and does not begin anew. INVALID_REQUEST: to is not known
// or not up, from is up, or the node cannot run the job and processesEnded is not said.
// STOP_UNCONFIRMED: processes are left; nothing was changed. BACKEND_UNAVAILABLE.
func (s *Scheduler) AdoptNode(ctx context.Context, from, to string, processesEnded bool) (*NodeAdoption, error) {
	if err := s.mayBegin(ctx, "nomad"); err != nil {
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
		jobIDs = append(jobIDs, registry.JobID(g.EngineID))
	}
	if !processesEnded {
		quiet, err := s.restartQuiet()
		if err == nil {
			err = s.endProcesses(ctx, to, jobIDs, quiet)
		}
		if errors.Is(err, errNoScripts) {
			return nil, fail(InvalidRequest, "node %s has no raw_exec driver, so the service cannot end what may still run there: end the engines' containers or reboot the node, and say so (processes_ended)", to)
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

// adoptable says whether engines of one node can be adopted by another, and what
// volumes that reports.
func (s *Scheduler) adoptable(ctx context.Context, from, to string) (map[string]cluster.NodeVolume, error) {
	node, err := s.cluster.ReadNode(ctx, to)
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		return nil, fail(InvalidRequest, "Nomad does not know node %s: restart the node's Nomad agent, should it be there", to)
	case err != nil:
		return nil, err
	case node.Down:
		return nil, fail(InvalidRequest, "Nomad's servers do not hear from node %s: restart its agent", to)
	}
	if from != to {
		old, err := s.cluster.ReadNode(ctx, from)
		if err != nil && !errors.Is(err, cluster.ErrNotFound) {
			return nil, err
		}
		if err == nil && !old.Down {
			return nil, fail(InvalidRequest, "node %s is up: its engines are adopted by another node only when it is gone", from)
		}
	}
	return s.cluster.NodeVolumes(ctx, to)
}

// stranded are the rows and unreachable volumes of a node that have no volume that could be used.
// lost: only those whose volume Nomad does not know. What is being destroyed leaves
// an unreachable volume.
func (s *Scheduler) stranded(ctx context.Context, nodeID string, lost bool) (rows []*registry.Engine, unreachable []*registry.UnreachableVolume, err error) {
	volumes, err := s.cluster.Volumes(ctx, cluster.Hasty)
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
		if row.NodeID == nodeID && row.VolumeID != "" && !known[row.VolumeID] && row.State != registry.Destroying && row.Reason != engine.ReasonBrainMissing {
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

// mayAdopt says whether an engine is at rest, or waits for the very process that the
// adoption ends.
func mayAdopt(row *registry.Engine) bool {
	if row.Op == nil {
		return row.State != registry.Provisioning
	}
	switch row.Op.Kind {
	case registry.OpStop, registry.OpSleep:
		return row.Op.Step == "drain"
	case registry.OpRotateKey:
		return row.Op.Step == "proof"
	}
	return false
}

// pathOn is where a node has a volume; "": it does not report it.
func pathOn(on map[string]cluster.NodeVolume, volumeID, name string) string {
	for _, v := range on {
		if v.ID == volumeID {
			return v.Path
		}
	}
	return on[name].Path
}

// each does something to each engine and returns those that it was done to. Of the
// others, done says why not.
func (s *Scheduler) each(ctx context.Context, take []*adoptee, done *NodeAdoption, do func(context.Context, *adoptee) error) []*adoptee {
	errs := make([]error, len(take))
	var work errgroup.Group
	work.SetLimit(adopters)
	for i, a := range take {
		work.Go(func() error { errs[i] = do(ctx, a); return nil })
	}
	_ = work.Wait() // the errors are kept
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

// whyNot is what an admin reads of an engine that was not adopted.
func whyNot(err error) string {
	if errors.Is(err, cluster.ErrNoDirectory) {
		return "the directory of its brain is not on the node"
	}
	return AsError(err).Message
}

// silence makes sure that nothing starts a process of an engine from now on.
func (s *Scheduler) silence(ctx context.Context, a *adoptee) error {
	_, err := s.cluster.ScaleToZero(ctx, a.row.JobID(), "", "", func() error { return s.store.Verify(ctx, a.row) })
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	return err
}

// register has Nomad take the directory of an engine's brain for a volume, under a
// name that was never used: a volume that was lost keeps its own on its node. The row
// names it before it is made, so that another try finds it.
func (s *Scheduler) register(ctx context.Context, a *adoptee, from, to string) error {
	row := a.row
	if a.path == "" {
		return fail(InvalidRequest, "neither its row nor the node says where its brain is")
	}
	volumes, err := s.volumesOf(ctx, row.EngineID)
	if err != nil {
		return err
	}
	var made *cluster.Volume
	for _, v := range volumes {
		if v.Name == row.NextVolume && v.NodeID == to && v.ID != row.VolumeID {
			made = v
		}
	}
	a.began = time.Now()
	if a.auditID, err = s.begin(ctx, row, audit.ActionAdopt, actorAdmin, map[string]any{"from": from, "to": to}); err != nil {
		return err
	}
	if made == nil {
		row.NextVolume = row.FreshVolumeName()
		if err := s.store.Update(ctx, row); err != nil {
			return err
		}
		if made, err = s.cluster.RegisterVolume(ctx, row.NextVolume, to, a.path); err != nil {
			return err
		}
	} else if made, err = s.cluster.Volume(ctx, made.ID); err != nil {
		return err
	}
	a.volume, a.path = made, made.Path
	return nil
}

// awaitReported waits until a node reports the volumes of engines: before that, no
// process that claims one is placed there.
func (s *Scheduler) awaitReported(ctx context.Context, nodeID string, take []*adoptee) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	for {
		on, err := s.cluster.NodeVolumes(ctx, nodeID)
		if err == nil && !slices.ContainsFunc(take, func(a *adoptee) bool { return on[a.volume.Name].ID != a.volume.ID }) {
			return nil
		}
		if !pause.For(ctx, volumeLook) {
			return &Error{Code: BackendUnavailable, Message: "the node does not report its volumes yet; try again", Err: errors.Join(ctx.Err(), err), RetryAfter: retryCapacity}
		}
	}
}

// moveTo writes the engine's new volume into its row, once no process is left of
// before.
func (s *Scheduler) moveTo(ctx context.Context, a *adoptee, from, to string) error {
	row, before := a.row, a.row.VolumeID
	op := row.Op
	row.NodeID, row.VolumeID, row.VolumeName, row.VolumePath = to, a.volume.ID, a.volume.Name, a.path
	settleAdopted(row)
	if err := s.store.Verify(ctx, row); err != nil {
		return err
	}
	// Its allocations on the node that is gone would be waited for.
	if err := s.cluster.Purge(ctx, row.JobID()); err != nil {
		return err
	}
	if err := s.store.Update(ctx, row); err != nil {
		return err
	}
	s.abandon(ctx, a.auditID, a.began, nil)
	if op != nil && op.Kind == registry.OpRotateKey {
		if err := s.vault.DestroyVersionsBefore(ctx, row.EngineID, row.KeyVersion); err != nil {
			s.log.Warn("earlier versions of a key are left until the next rotation", "engine_id", row.EngineID, "error", err)
		}
	}
	if from != to {
		if err := s.cluster.ForgetVolume(ctx, before); err != nil && !errors.Is(err, cluster.ErrNotFound) {
			s.log.Info("Nomad keeps the volume of a node that is gone until the engine is destroyed", "engine_id", row.EngineID, "volume_id", before, "error", err)
		}
	}
	return nil
}

// settleAdopted gives a row the state that its engine is in when no process of it is
// left: one that was to run is failed until the service has started it, one that was
// to stop is stopped. An operation that waited for that has ended.
func settleAdopted(row *registry.Engine) {
	if op := row.Op; op != nil {
		switch op.Kind {
		case registry.OpStop:
			row.State, row.Desired = registry.Stopped, registry.Stopped
		case registry.OpSleep:
			row.State = registry.Sleeping
		case registry.OpRotateKey:
			row.KeyVersion, row.KeyID = op.KeyVersion, op.KeyID
		}
		row.Op = nil
	}
	row.Unproven, row.Proven = nil, nil
	row.Vanished, row.Frozen, row.URL, row.AllocID, row.Restarts, row.SleepPending, row.Reason = nil, nil, "", "", nil, "", ""
	switch {
	case row.State == registry.Failed && row.Desired == registry.Stopped:
		row.State = registry.Stopped
	case row.State == registry.Running, row.State == registry.Failed:
		row.State, row.Desired, row.Reason = registry.Failed, registry.Running, engine.ReasonAdopted
	}
}

// clearUnreachable removes what is left of destroyed engines, for a while.
func (s *Scheduler) clearUnreachable(ctx context.Context, unreachable []*registry.UnreachableVolume, to string, on map[string]cluster.NodeVolume, done *NodeAdoption) {
	until := time.Now().Add(clearFor)
	var work errgroup.Group
	work.SetLimit(adopters)
	cleared, late := make([]bool, len(unreachable)), make([]bool, len(unreachable))
	for i, g := range unreachable {
		work.Go(func() error {
			if late[i] = time.Now().After(until); late[i] {
				return nil
			}
			var err error
			if cleared[i], err = s.clearVolume(ctx, g, to, cmp.Or(pathOn(on, g.VolumeID, g.Volume()), g.VolumePath)); err != nil {
				s.log.Warn("the data of a destroyed engine is still on its node", "engine_id", g.EngineID, "error", err)
			}
			return nil
		})
	}
	_ = work.Wait() // none returns an error
	for i := range unreachable {
		switch {
		case cleared[i]:
			done.Cleared++
		case late[i]:
			done.Left++
		}
	}
}

// clearVolume removes what is left of a destroyed engine whose volume Nomad does not
// know: the directory is registered, removed, and forgotten with its volume.
func (s *Scheduler) clearVolume(ctx context.Context, g *registry.UnreachableVolume, to, path string) (bool, error) {
	if path == "" {
		return false, errors.New("nobody says where its directory is")
	}
	volumes, err := s.volumesOf(ctx, g.EngineID)
	if err != nil {
		return false, err
	}
	row := &registry.Engine{EngineID: g.EngineID, VolumeName: g.VolumeName}
	var v *cluster.Volume
	for _, have := range volumes {
		if have.NodeID == to && have.Name != g.Volume() {
			v = have // of a try before
		}
	}
	for tries := 0; v == nil; tries++ {
		row.NextVolume = row.FreshVolumeName()
		v, err = s.cluster.RegisterVolume(ctx, row.NextVolume, to, path)
		switch {
		case errors.Is(err, cluster.ErrNoDirectory) && to == g.NodeID:
			return true, s.forgetCleared(ctx, g) // somebody removed it
		case err != nil && tries >= 3: // the first names may be taken
			return false, err
		}
	}
	if err := s.awaitReported(ctx, to, []*adoptee{{volume: v}}); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, scrubTimeout)
	defer cancel()
	left, err := s.removeVolume(limited, v)
	for errors.Is(err, cluster.ErrInUse) && pause.For(limited, volumeLook) {
		left, err = s.removeVolume(limited, v)
	}
	if err == nil && left != "" {
		err = errors.New(left)
	}
	if err != nil {
		return false, err
	}
	if to != g.NodeID {
		if err := s.cluster.ForgetVolume(ctx, g.VolumeID); err != nil && !errors.Is(err, cluster.ErrNotFound) {
			s.log.Info("Nomad keeps the volume of a node that is gone", "engine_id", g.EngineID, "volume_id", g.VolumeID, "error", err)
		}
	}
	return true, s.forgetCleared(ctx, g)
}

// forgetCleared forgets an unreachable volume of which nothing is left.
func (s *Scheduler) forgetCleared(ctx context.Context, g *registry.UnreachableVolume) error {
	if err := s.forgetVolume(ctx, g); err != nil && !errors.Is(err, errNoVolume) {
		return fmt.Errorf("forget the unreachable volume: %w", err)
	}
	return nil
}
