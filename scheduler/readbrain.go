package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// workerClaims reports whether a worker on a node must claim the volume that it reads or
// fills. It claims none if it can: Nomad rejects every placement on the node as long as an
// engine and a reader of its volume run, and a new volume can be claimed only after its node
// has reported it.
func (o *work) workerClaims(ctx context.Context, nodeID string) (bool, error) {
	if o.s.opts.Job.Driver != jobs.Docker {
		return false, nil // it gets the directory in its order
	}
	node, err := o.s.cluster.ReadNode(ctx, nodeID)
	return err == nil && !node.DockerMounts, err
}

// letRead makes sure that a worker may claim the engine's volume beside the engine.
func (o *work) letRead(ctx context.Context) error {
	v, err := o.s.cluster.Volume(ctx, o.Row.VolumeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return &engine.Error{Code: engine.SnapshotFailed, Message: "the brain cannot be read: " + whatToDo, Err: errStateLost}
	}
	if err != nil || v.Readable {
		return err
	}
	if name, _ := engine.ParseVolume(o.Row.Volume()); name.Registered {
		// An update by Nomad would look for the directory at another path.
		return engine.Errorf(engine.SnapshotFailed, "the engine's volume was registered again by an earlier version of the service, and Nomad lets nothing read it: allow mounts in the node's docker plugin (volumes { enabled = true })")
	}
	template, err := o.s.jobFile()
	if err != nil {
		return err
	}
	if err := o.Fence(ctx); err != nil {
		return err
	}
	err = o.s.cluster.LetRead(ctx, v, template.Owner().Params(), o.Row.QuotaMB)
	if errors.Is(err, cluster.ErrInUse) {
		return engine.Errorf(engine.SnapshotFailed, "an earlier version of the service created the engine's volume, and Nomad lets nothing read it while the engine runs: stop the engine once, take a snapshot, and start it again")
	}
	return err
}
