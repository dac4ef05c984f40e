package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

// adoptee is an engine on its way to a new volume.
type adoptee struct {
	row    *engine.Row
	path   string
	volume *cluster.Volume

	auditID int64
	began   time.Time
}

// mayAdopt says whether an engine is at rest, or waits for the very process that the
// adoption ends.
func mayAdopt(row *engine.Row) bool {
	if row.Op == nil {
		return row.State != engine.Provisioning
	}
	switch row.Op.Kind {
	case engine.OpStop, engine.OpSleep:
		return row.Op.Step == "drain"
	case engine.OpRotateKey:
		return row.Op.Step == "proof"
	}
	return false
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
		return engine.Errorf(engine.InvalidRequest, "neither its row nor the node says where its brain is")
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
			return &engine.Error{Code: engine.BackendUnavailable, Message: "the node does not report its volumes yet; try again", Err: errors.Join(ctx.Err(), err), RetryAfter: retryCapacity}
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
	if op != nil && op.Kind == engine.OpRotateKey {
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
func settleAdopted(row *engine.Row) {
	if op := row.Op; op != nil {
		switch op.Kind {
		case engine.OpStop:
			row.State, row.Desired = engine.Stopped, engine.Stopped
		case engine.OpSleep:
			row.State = engine.Sleeping
		case engine.OpRotateKey:
			row.KeyVersion, row.KeyID = op.KeyVersion, op.KeyID
		}
		row.Op = nil
	}
	row.Unproven, row.Proven = nil, nil
	row.Vanished, row.Frozen, row.URL, row.AllocID, row.Restarts, row.SleepPending, row.Reason = nil, nil, "", "", nil, "", ""
	switch {
	case row.State == engine.Failed && row.Desired == engine.Stopped:
		row.State = engine.Stopped
	case row.State == engine.Running, row.State == engine.Failed:
		row.State, row.Desired, row.Reason = engine.Failed, engine.Running, engine.ReasonAdopted
	}
}
