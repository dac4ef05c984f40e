package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// purge stops the engine's job for good.
func (o *operation) purge(ctx context.Context) error {
	return o.s.cluster.Purge(ctx, o.row.JobID())
}

// deleteVolume deletes the brain. Where that cannot be confirmed it is left: the row
// keeps its id, and the volume is listed as unreachable.
func (o *operation) deleteVolume(ctx context.Context) error {
	if len(o.row.Unproven) > 0 {
		return nil
	}
	for {
		left, err := o.s.removeVolumes(ctx, remains{o.row.EngineID, o.row.NodeID, o.row.VolumeID, o.row.VolumePath, o.row.Volume()})
		switch {
		case err == nil && left == "":
			o.row.VolumeID = ""
			return nil
		case err == nil:
			o.log.Warn("the volume of a destroyed engine is left on its node, and listed (GET /unreachable-volumes)", "why", left)
			return nil
		case o.row.NodeID != "" && o.row.VolumeID != "" && o.s.nodeSilent(o.row.NodeID):
			return nil
		case !errors.Is(err, cluster.ErrInUse) || time.Now().After(o.row.Op.Deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// deleteVariable removes the hash of the engine's key.
func (o *operation) deleteVariable(ctx context.Context) error {
	return o.s.cluster.DeleteVariable(ctx, o.row.JobID())
}

// deleteKey removes every version of the engine's key.
func (o *operation) deleteKey(ctx context.Context) error {
	return o.s.vault.DeleteEngine(ctx, o.row.EngineID)
}

// removeRow ends the engine: row, index and place in the quota go at once. A
// volume that could not be deleted is listed as unreachable.
func (o *operation) removeRow(ctx context.Context) error {
	err := o.s.store.Remove(ctx, o.row, o.row.VolumeID != "")
	if errors.Is(err, registry.ErrConflict) {
		now, gerr := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		if err = nil; !errors.Is(gerr, registry.ErrNotFound) { // else an answer was lost
			err = o.lost(ctx, now, gerr)
		}
	}
	o.removed = err == nil
	return err
}

// settle waits until the replica whose operation was interrupted has said that it
// does nothing more, or is gone. Of an engine that is somebody else's by its
// witnesses, the row alone goes.
func (o *operation) settle(ctx context.Context) error {
	for o.row.Op.Supersedes != "" {
		row, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		if err != nil {
			return o.lost(ctx, nil, err)
		}
		if row.Op == nil || row.Op.ID != o.row.Op.ID || row.Op.Owner != o.row.Op.Owner {
			return errTakenOver
		}
		o.row = row
		replicas, err := o.s.store.Replicas(ctx)
		if err != nil {
			return err
		}
		// Here nothing else runs on the engine.
		if by := row.Op.Supersedes; by == "" || by == o.s.replica.ID || !replicas[by] {
			o.row.Op.Supersedes = ""
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
	o.releaseRow()
	return errDetour
}
