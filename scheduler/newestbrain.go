package scheduler

import (
	"cmp"
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// newestBrain returns an error if the engine was last started with a newer volume than the one
// in its row, and that volume exists: the registry was restored from a backup. To start it
// with the older one, or to take its process for one that has the older one, would lose what it
// has learnt since.
func (o *work) newestBrain(ctx context.Context, w *cluster.Witness) error {
	row := o.Row
	concerns := row.Op.Kind == engine.OpStart || row.Op.Kind == engine.OpRestart || row.Op.Kind == engine.OpRecover
	if w == nil || !concerns || w.VolumeID == row.VolumeID || w.EngineID != row.EngineID || row.HasLeft(w.VolumeID) {
		return nil
	}
	was, _ := engine.ParseVolume(cmp.Or(w.VolumeName, row.JobID()))
	if is, _ := engine.ParseVolume(row.Volume()); was.Number <= is.Number {
		return nil // the row may be newer, for example after Nomad's servers were restored
	}
	_, err := o.s.cluster.Volume(ctx, w.VolumeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	o.s.guard.Suspect("engine " + row.EngineID + " was last started with a newer volume than its row names")
	return errRecovering
}

// recoversNewest is newestBrain for the recovery of a process that runs already.
func (o *work) recoversNewest(ctx context.Context) error {
	if o.Row.Op.Kind != engine.OpRecover {
		return nil
	}
	held, err := o.s.cluster.Variable(ctx, o.Row.JobID())
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return o.newestBrain(ctx, held.Witness)
}
