package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// nameVolume chooses the name of the engine's next volume, with a higher number than every
// volume of the engine in Nomad has. One that the row does not know may be left from before the
// registry was restored from a backup, and hold the newest brain.
func (o *work) nameVolume(ctx context.Context, fresh func(*engine.Row) string) error {
	volumes, err := o.s.cluster.VolumesLike(ctx, o.Row.JobID())
	if err != nil {
		return err
	}
	for _, v := range volumes {
		there, is := engine.ParseVolume(v.Name)
		last, _ := engine.ParseVolume(o.Row.NextVolume)
		if is && there.EngineID == o.Row.EngineID && there.Number > max(1, last.Number) {
			o.Row.NextVolume = v.Name
		}
	}
	o.Row.NextVolume = fresh(o.Row)
	return nil
}

// volumeToFill returns the volume of this name on a node, and creates it if there is none. A
// worker may fill it now; an engine may claim it later (AwaitVolume).
func (o *work) volumeToFill(ctx context.Context, name, nodeID string) (*cluster.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	claims, err := o.workerClaims(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	v, err := o.createVolume(ctx, name, nodeID)
	switch {
	case err != nil:
		return nil, err
	case claims:
		return o.s.cluster.AwaitVolume(ctx, v.ID)
	case v.Path == "":
		return o.s.cluster.Volume(ctx, v.ID)
	}
	return v, nil
}

// createVolume creates the volume of this name on a node, unless there is one. The node refuses
// a second volume of the same name; the fence avoids creating the volume of an engine that was
// destroyed meanwhile.
func (o *work) createVolume(ctx context.Context, name, nodeID string) (*cluster.Volume, error) {
	template, err := o.s.jobFile()
	if err != nil {
		return nil, err
	}
	if err := o.Fence(ctx); err != nil {
		return nil, err
	}
	return o.s.cluster.EnsureVolume(ctx, name, nodeID, template.Owner().Params())
}

// awaitTarget waits until a process may claim the new volume, and for the turn of the worker
// that reads the former one, so that the engine is not stopped earlier.
func (o *work) awaitTarget(ctx context.Context) error {
	if err := o.awaitVolume(ctx, o.Row.Op.Restoring.Target.VolumeID); err != nil {
		return err
	}
	if o.Row.Op.Taking == nil || o.s.nodeSilent(o.Row.NodeID) {
		return nil
	}
	return o.awaitReader(ctx)
}

func (o *work) awaitVolume(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	_, err := o.s.cluster.AwaitVolume(ctx, id)
	return err
}

// forkIsFilled reports whether a fork has had its brain already, because its variable names the
// volume: that is written after the fetch. The registry was restored from the middle of the
// fork then, and the engine may run and have learnt something.
func (o *work) forkIsFilled(ctx context.Context) (bool, error) {
	if o.Row.Op.Kind != engine.OpProvision {
		return false, nil
	}
	held, err := o.s.cluster.Variable(ctx, o.Row.JobID())
	if errors.Is(err, cluster.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w := held.Witness
	return w != nil && w.EngineID == o.Row.EngineID && w.VolumeID == o.Row.VolumeID, nil
}

// awaitForkVolume waits until the process of a fork may claim its volume.
func (o *work) awaitForkVolume(ctx context.Context) error {
	return o.awaitVolume(ctx, o.Row.VolumeID)
}
