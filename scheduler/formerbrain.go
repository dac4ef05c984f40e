package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// The steps by which the brain that a restore replaces becomes a snapshot. The worker sends it
// while the engine boots on the other brain.
const (
	stepFormer     = "former-upload"
	stepFormerSend = "former-send"
	// These begin the upload anew, when the engine runs on the other brain already.
	stepFormerAgain       = "former-upload-again"
	stepFormerWorkerAgain = "former-worker-again"
)

// brainAt returns where the brain is of which the operation takes a snapshot.
func (o *work) brainAt() engine.Place {
	if r := o.Row.Op.Restoring; o.Row.Op.Kind == engine.OpRestore && r.Former != nil {
		return *r.Former
	}
	return o.Row.Place()
}

// beginFormer begins the snapshot of the brain that is being replaced, if it can be read.
func (o *work) beginFormer(ctx context.Context) error {
	row, op := o.Row, o.Row.Op
	if op.Restoring.Lost || row.VolumeID == "" || row.Reason == engine.ReasonBrainMissing {
		op.Taking, op.Step = nil, stepSwitchKey
		return operation.ErrDetour
	}
	if op.Taking == nil {
		op.Taking = &engine.Taking{SnapshotID: newSnapshotID(row), Trigger: engine.TriggerRestore}
	}
	op.Deadline = time.Now().UTC().Add(operation.BrainTimeout)
	return o.beginUpload(ctx)
}

// sendFormer waits until the snapshot of the former brain is sent, if there is one. If its node
// is lost meanwhile, the engine stays where it runs.
func (o *work) sendFormer(ctx context.Context) error {
	op := o.Row.Op
	if op.Taking == nil {
		return nil
	}
	op.Deadline = time.Now().UTC().Add(operation.BrainTimeout) // so far it was that of the boot
	err := o.awaitSent(ctx)
	if r := op.Restoring; errors.Is(err, errNodeSilent) && r.Former.NodeID != r.Target.NodeID {
		o.Log.Warn("the brain that a restore replaced could not become a snapshot, because its node does not respond", "volume_id", r.Former.VolumeID)
		err, op.Taking = o.dropUpload(ctx), nil
	}
	return err
}

// storeFormer completes the snapshot of the former brain, if there is one.
func (o *work) storeFormer(ctx context.Context) error {
	if o.Row.Op.Taking == nil {
		return nil
	}
	return o.storeSnapshot(ctx)
}
