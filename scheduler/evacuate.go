package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Evacuation is the progress of the removal of all engines from a node.
type Evacuation struct {
	*registry.Evacuation
	// Left are the engines whose brains are still on the node, those without a user among
	// them, and Moving how many of them are on their way.
	Left, Moving int
	// Failed are the engines whose last attempt failed, by their ids.
	Failed []FailedMove
}

// FailedMove is an engine that could not be moved yet.
type FailedMove struct {
	EngineID, ProductID, UserID string
	registry.FailedMove
}

// Evacuate begins to move all engines of a node to other nodes. If that goes on already, what
// has failed is tried again without a wait. No engine comes to the node meanwhile, and at the
// end Nomad places nothing there. If the node is
// ineligible or draining, it becomes eligible until then, because Nomad places the workers of
// snapshots on no other.
//
// NOT_FOUND: there is no such node. SNAPSHOT_FAILED: the node does not respond, or the service
// has no worker. BACKEND_REFUSED: the service's token may not change nodes.
func (s *Scheduler) Evacuate(ctx context.Context, nodeID string) (*Evacuation, error) {
	if err := s.mayBegin(ctx, "consul", "nomad", "vault"); err != nil {
		return nil, err
	}
	if s.opts.Snapshots.Worker == "" {
		return nil, errNoWorker
	}
	found, err := s.scheduling(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	if s.nodeSilent(nodeID) {
		return nil, engine.Errorf(engine.SnapshotFailed, "the node does not respond, so no brain on it can be read: restore its engines (POST /engines/{user_id}/restore, or on_node_lost in their product's policy)")
	}
	var e *Evacuation
	asked := newID()
	err = s.auditedEvacuation(ctx, audit.ActionEvacuate, adminActor(ctx), nodeID, func() (err error) {
		// Before anything is recorded, because without this right nothing could be moved.
		switch {
		case found.Eligible:
			err = s.cluster.MakeEligible(ctx, nodeID, false)
		case !found.Draining:
			err = s.cluster.MakeIneligible(ctx, nodeID)
		}
		if err != nil {
			return mayNotSchedule(err)
		}
		e, err = s.beginEvacuation(ctx, nodeID, found, registry.EvacuateCall, asked)
		return err
	}, askedBy(asked))
	return e, err
}

// auditedEvacuation makes a change of a node's evacuation between beginning and completing its
// audit row. shown reports whether a record shows the change.
func (s *Scheduler) auditedEvacuation(ctx context.Context, action, actor, nodeID string, change func() error, shown func(*registry.Evacuation) bool) error {
	entry := audit.Entry{Action: action, Actor: actor, Metadata: map[string]any{"node_id": nodeID}}
	return s.auditedChange(ctx, entry, change, func(ctx context.Context) (bool, error) {
		e, err := s.store.Evacuation(ctx, nodeID)
		return err == nil && shown(e), err
	})
}

// askedBy reports of a record whether it has a request.
func askedBy(asked string) func(*registry.Evacuation) bool {
	return func(e *registry.Evacuation) bool { return e.Asked == asked }
}

// beginEvacuation writes the record of an evacuation. A drain changes none that goes on. A call
// that comes meanwhile only lets failed moves be tried again; one that is about to be cancelled,
// by somebody or because the registry came back with a backup, is begun again for it: the call
// came later.
func (s *Scheduler) beginEvacuation(ctx context.Context, nodeID string, found *cluster.Scheduling, by, asked string) (*Evacuation, error) {
	for {
		was, err := s.store.Evacuation(ctx, nodeID)
		if err != nil {
			return nil, err
		}
		continues, outdated := was.NodeID != "" && was.Outcome == "", s.outdated(was)
		if continues && by == registry.EvacuateDrain {
			return s.evacuation(was), nil
		}
		e := was
		if !continues || outdated || was.Cancelled {
			e = &registry.Evacuation{NodeID: nodeID, RequestedAt: time.Now().UTC(), By: by, Found: foundOf(found), Index: was.Index}
			if continues && !outdated {
				e.Found = was.Found
			}
			e.Registry, e.Recovered = s.registryMark()
			e.Total = len(onNode(s.mirror.All(), nodeID))
		}
		e.Asked, e.Failures = asked, nil
		switch err := s.store.PutEvacuation(ctx, e); {
		case errors.Is(err, registry.ErrConflict):
			continue
		case err != nil:
			return nil, err
		}
		s.log.Info("evacuating a node", "node_id", nodeID, "by", by, "engines", e.Total)
		s.noteEvacuating(e)
		return s.evacuation(e), nil
	}
}

// registryMark returns the mark of the present registry, and the end of its last recovery.
func (s *Scheduler) registryMark() (string, time.Time) {
	d := s.guard.Current()
	switch {
	case d == nil:
		return "", time.Time{}
	case d.Last == nil:
		return d.Registry, time.Time{}
	}
	return d.Registry, d.Last.EndedAt.UTC()
}

// outdated reports whether a record came back with a backup of the registry: perhaps nobody
// wants its node to be empty any more.
func (s *Scheduler) outdated(e *registry.Evacuation) bool {
	mark, recovered := s.registryMark()
	return mark != e.Registry || !recovered.Equal(e.Recovered)
}

func foundOf(f *cluster.Scheduling) registry.NodeFound {
	return registry.NodeFound{Eligible: f.Eligible, Drain: f.Draining, DrainUntil: f.Until, IgnoreSystemJobs: f.IgnoreSystemJobs}
}

// EvacuationOf returns the last evacuation of a node. NOT_FOUND: there was none.
func (s *Scheduler) EvacuationOf(ctx context.Context, nodeID string) (*Evacuation, error) {
	e, err := s.store.Evacuation(ctx, nodeID)
	if err == nil && e.NodeID == "" {
		err = errNotEvacuated
	}
	if err != nil {
		return nil, err
	}
	return s.evacuation(e), nil
}

var errNotEvacuated = engine.Errorf(engine.NotFound, "this node was not evacuated in the last week")

// CancelEvacuation asks for the end of an evacuation: engines that were stopped for their move
// arrive, and the others stay. Then the leader makes the node drained or ineligible again, if
// it was. NOT_FOUND: there is no evacuation.
func (s *Scheduler) CancelEvacuation(ctx context.Context, nodeID string) (*Evacuation, error) {
	if err := s.mayBegin(ctx, "consul", "nomad"); err != nil {
		return nil, err
	}
	var e *registry.Evacuation
	read := func() (err error) {
		e, err = s.store.Evacuation(ctx, nodeID)
		if err == nil && e.NodeID == "" {
			err = errNotEvacuated
		}
		return err
	}
	ends := func() bool { return e.Outcome != "" || e.Cancelled }
	if err := read(); err != nil {
		return nil, err
	}
	if ends() {
		return s.evacuation(e), nil
	}
	of := e.RequestedAt
	err := s.auditedEvacuation(ctx, audit.ActionEvacuateCancel, adminActor(ctx), nodeID, func() error {
		for {
			e.Cancelled, e.Waits = true, ""
			err := s.store.PutEvacuation(ctx, e)
			if !errors.Is(err, registry.ErrConflict) {
				return err
			}
			if err := read(); err != nil || ends() {
				return err
			}
		}
	}, func(now *registry.Evacuation) bool { return now.Cancelled && now.RequestedAt.Equal(of) })
	if err != nil {
		return nil, err
	}
	return s.evacuation(e), nil
}

// scheduling reads how Nomad schedules on a node. NOT_FOUND.
func (s *Scheduler) scheduling(ctx context.Context, nodeID string) (*cluster.Scheduling, error) {
	found, err := s.cluster.Scheduling(ctx, nodeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, engine.Errorf(engine.NotFound, "Nomad knows no node with this id")
	}
	return found, err
}

// mayNotSchedule returns the error of a change of a node.
func mayNotSchedule(err error) error {
	if errors.Is(err, cluster.ErrDenied) {
		return &engine.Error{Code: engine.BackendRefused, Message: "the service's Nomad token may not change nodes: an evacuation needs node { policy = \"write\" }", Err: err}
	}
	return err
}

// onNode returns the rows whose brains are on a node, or may come there. One that has left it
// may come back until its operation has ended.
func onNode(rows []*engine.Row, nodeID string) (on []*engine.Row) {
	for _, row := range rows {
		passes := false
		if row.Op != nil && row.Op.Restoring != nil {
			r := row.Op.Restoring
			passes = r.Target.NodeID == nodeID || r.Former != nil && r.Former.NodeID == nodeID
		}
		if row.NodeID == nodeID && row.Reason != engine.ReasonBrainMissing || passes {
			on = append(on, row)
		}
	}
	return on
}

// order sorts engines by what a move costs their users.
func order(row *engine.Row) int {
	if row.State == engine.Running {
		return 1
	}
	return 0
}

// evacuation completes the record of an evacuation with what the rows say.
func (s *Scheduler) evacuation(e *registry.Evacuation) *Evacuation {
	p := &Evacuation{Evacuation: e}
	if e.Outcome == registry.EvacuationDone {
		return p
	}
	for _, row := range onNode(s.mirror.All(), e.NodeID) {
		p.Left++
		if moving(row) {
			p.Moving++
		}
		if f, failed := e.Failures[row.EngineID]; failed {
			p.Failed = append(p.Failed, FailedMove{row.EngineID, row.ProductID, row.UserID, f})
		}
	}
	slices.SortFunc(p.Failed, func(a, b FailedMove) int { return cmp.Compare(a.EngineID, b.EngineID) })
	return p
}

// noteEvacuating keeps engines from a node, or no longer, before the records are read again.
func (s *Scheduler) noteEvacuating(e *registry.Evacuation) {
	if e.Outcome == "" {
		s.evacuating.Store(e.NodeID, true)
	} else {
		s.evacuating.Delete(e.NodeID)
	}
}

// evacuates reports whether engines are moved away from a node.
func (s *Scheduler) evacuates(nodeID string) bool {
	_, is := s.evacuating.Load(nodeID)
	return is
}

// strangeVolumes counts the volumes on a node that may hold the brain of an engine without a
// row that the service can read: it cannot move them.
func (s *Scheduler) strangeVolumes(ctx context.Context, nodeID string) (n int, err error) {
	pooled, _, err := s.store.PooledVolumes(ctx)
	if err != nil {
		return 0, err
	}
	ready := map[string]bool{}
	for _, v := range pooled {
		ready[v.VolumeID] = true
	}
	volumes, err := s.cluster.VolumesLike(ctx, engine.JobPrefix)
	if err != nil {
		return 0, err
	}
	for _, v := range volumes {
		name, is := engine.ParseVolume(v.Name)
		if is && v.NodeID == nodeID && !ready[v.ID] && s.mirror.ByID(name.EngineID) == nil {
			n++
		}
	}
	return n, nil
}
