package scheduler

import (
	"context"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// unreadableBrain reports whether an error means that no snapshot can be taken of a brain,
// whatever else is mended: a file of it cannot be read, or it does not fit into an archive.
func unreadableBrain(err error) bool {
	kind := brain.KindOf(err)
	return kind == brain.Unreadable || kind == brain.TooLarge
}

// replacesUnread reports whether an error means that no snapshot can be taken of a brain that
// is being replaced. That is when a restore is needed most.
func (o *work) replacesUnread(err error) bool {
	return o.Row.Op.Kind == engine.OpRestore && unreadableBrain(err)
}

// replaceUnread goes on with a restore without a snapshot of the present brain. Its volume is
// kept, because it may hold what somebody can still recover by hand, until the engine is
// destroyed.
func (o *work) replaceUnread(ctx context.Context, why error) error {
	if err := o.removeWorker(ctx); err != nil {
		return err
	}
	if err := o.dropUpload(ctx); err != nil {
		return err
	}
	former := o.Row.Place()
	o.Log.Warn("the brain that is replaced cannot be read, so there is no snapshot of it: its volume is kept until the engine is destroyed",
		"error", why, "volume_id", former.VolumeID, "volume_path", former.VolumePath, "node_id", former.NodeID)
	op := o.Row.Op
	op.Restoring.Unread = true
	op.Taking, op.Worker, op.Step = nil, "", stepSwitchKey
	return operation.ErrDetour
}

// uploadRemoved gives the error of an upload that is no longer in the store its meaning.
func uploadRemoved(err error) error {
	if brain.KindOf(err) != brain.NotFound {
		return err
	}
	return &engine.Error{Code: engine.SnapshotFailed, Message: "somebody has removed the upload of the snapshot from the store; retry", Err: err}
}
