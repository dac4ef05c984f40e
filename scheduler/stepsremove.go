package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// purge stops the engine's job and removes it from Nomad.
func (o *work) purge(ctx context.Context) error {
	return o.s.cluster.Purge(ctx, o.Row.JobID())
}

// deleteVolume deletes the brain. If that cannot be confirmed, the row keeps the volume's
// id, and the volume is listed as unreachable.
func (o *work) deleteVolume(ctx context.Context) error {
	if len(o.Row.Unproven) > 0 {
		return nil
	}
	row := o.Row
	row.Discarded = slices.DeleteFunc(row.Discarded, func(d engine.Discarded) bool { return !o.s.nodeSilent(d.NodeID) }) // the others are removed like the brain
	r := remains{engineID: row.EngineID, nodeID: row.NodeID, volumeID: row.VolumeID, path: row.VolumePath, name: row.Volume()}
	for _, d := range row.Discarded {
		r.others = append(r.others, d.VolumeID)
	}
	for {
		left, err := o.s.removeVolumes(ctx, r)
		switch {
		case err == nil && left == "":
			o.Row.VolumeID = ""
			return nil
		case err == nil:
			o.Log.Warn("the volume of a destroyed engine is still on its node, and listed (GET /unreachable-volumes)", "why", left)
			return nil
		case o.Row.NodeID != "" && o.Row.VolumeID != "" && o.s.nodeSilent(o.Row.NodeID):
			return nil
		case !errors.Is(err, cluster.ErrInUse) || time.Now().After(o.Row.Op.Deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// deleteVariable deletes the variable with the hash of the engine's key.
func (o *work) deleteVariable(ctx context.Context) error {
	return o.s.cluster.DeleteVariable(ctx, o.Row.JobID())
}

// deleteKey deletes every version of the engine's key.
func (o *work) deleteKey(ctx context.Context) error {
	return o.s.vault.DeleteEngine(ctx, o.Row.EngineID)
}

// removeRow ends the engine: row, index and place in the quota are removed together. A
// volume that could not be deleted is listed as unreachable.
func (o *work) removeRow(ctx context.Context) error {
	err := o.s.store.Remove(ctx, o.Row, o.Row.VolumeID != "")
	if errors.Is(err, registry.ErrConflict) {
		now, gerr := o.s.store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
		if err = nil; !errors.Is(gerr, registry.ErrNotFound) { // otherwise only a response was lost
			err = o.Lost(ctx, now, gerr)
		}
	}
	o.Removed = err == nil
	return err
}

// settle waits until the replica whose operation was interrupted has acknowledged that, or
// has ended. If the engine belongs to another user according to its witnesses, only the row
// is deleted.
func (o *work) settle(ctx context.Context) error {
	for o.Row.Op.Supersedes != "" {
		row, err := o.s.store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
		if err != nil {
			return o.Lost(ctx, nil, err)
		}
		if row.Op == nil || row.Op.ID != o.Row.Op.ID || row.Op.Owner != o.Row.Op.Owner {
			return operation.ErrTakenOver
		}
		o.Row = row
		replicas, err := o.s.store.Replicas(ctx)
		if err != nil {
			return err
		}
		// In this replica nothing else runs on the engine.
		if by := row.Op.Supersedes; by == "" || by == o.s.replica.ID || !replicas[by] {
			o.Row.Op.Supersedes = ""
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	foreign, err := o.releaseForeign(ctx)
	if err != nil || !foreign {
		return err
	}
	o.ReleaseRow()
	return operation.ErrDetour
}
