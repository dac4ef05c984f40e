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
	"github.com/septemberai/orch/jobs"
)

// adoptee is an engine that is getting a new volume.
type adoptee struct {
	row    *engine.Row
	path   string
	volume *cluster.Volume

	auditID int64
	began   time.Time
}

// mayAdopt reports whether an engine has no operation, or waits only for the process that
// the adoption ends.
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

// silence makes sure that nothing starts a process of an engine any more.
func (s *Scheduler) silence(ctx context.Context, a *adoptee) error {
	_, err := s.cluster.ScaleToZero(ctx, a.row.JobID(), jobs.Note{}, func() error { return s.store.Verify(ctx, a.row) })
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	return err
}

// register registers the directory of an engine's brain as a volume, under a name that was
// never used, because a lost volume keeps its name on its node. The name is written into
// the row before the volume is created, so that a retry finds it.
func (s *Scheduler) register(ctx context.Context, a *adoptee, from, to string) error {
	row := a.row
	if a.path == "" {
		return engine.Errorf(engine.InvalidRequest, "neither its row nor its node names the directory of its brain")
	}
	volumes, err := s.brainsOf(ctx, row.EngineID)
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
	if a.auditID, err = s.begin(ctx, row, audit.ActionAdopt, adminActor(ctx), map[string]any{"from": from, "to": to}); err != nil {
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

// awaitReported waits until a node reports the volumes of engines. Before that, no process
// that claims one can be placed there.
func (s *Scheduler) awaitReported(ctx context.Context, nodeID string, take []*adoptee) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	for {
		on, err := s.cluster.NodeVolumes(ctx, nodeID)
		if err == nil && !slices.ContainsFunc(take, func(a *adoptee) bool { return on[a.volume.Name].ID != a.volume.ID }) {
			return nil
		}
		if !pause.For(ctx, volumeLook) {
			return &engine.Error{Code: engine.BackendUnavailable, Message: "the node does not report its volumes yet; retry", Err: errors.Join(ctx.Err(), err), RetryAfter: retryCapacity}
		}
	}
}

// moveTo writes the engine's new volume into its row, after all its old processes have
// ended.
func (s *Scheduler) moveTo(ctx context.Context, a *adoptee, from, to string) error {
	row, before := a.row, a.row.VolumeID
	op := row.Op
	row.NodeID, row.VolumeID, row.VolumeName, row.VolumePath = to, a.volume.ID, a.volume.Name, a.path
	settleAdopted(row)
	if err := s.store.Verify(ctx, row); err != nil {
		return err
	}
	// Otherwise the process would wait for the job's allocations on the lost node.
	if err := s.cluster.Purge(ctx, row.JobID()); err != nil {
		return err
	}
	if err := s.store.Update(ctx, row); err != nil {
		return err
	}
	s.abandon(ctx, a.auditID, a.began, nil)
	if op != nil && op.Kind == engine.OpRotateKey {
		if err := s.vault.DestroyVersionsBefore(ctx, row.EngineID, row.KeyVersion); err != nil {
			s.log.Warn("cannot destroy earlier versions of a key; the next rotation does it", "engine_id", row.EngineID, "error", err)
		}
	}
	if from != to {
		if err := s.cluster.ForgetVolume(ctx, before); err != nil && !errors.Is(err, cluster.ErrNotFound) {
			s.log.Info("Nomad keeps the volume of a lost node until the engine is destroyed", "engine_id", row.EngineID, "volume_id", before, "error", err)
		}
	}
	return nil
}

// settleAdopted sets the state of a row whose engine has no process any more: failed if the
// engine should run, until the service has started it, or stopped if it should not. An
// operation that waited for the end of the process is finished.
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
