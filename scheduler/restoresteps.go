package scheduler

import (
	"context"
	"slices"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

const (
	stepFetch = "fetch"
	// stepClean removes a worker, when the row says that its work is done: a second worker
	// would find a volume that is not empty.
	stepClean     = "clean"
	stepSwitchKey = "new-key"
	// stepForkTake takes the snapshot of a fork, stepForkVolume makes its volume, and
	// stepForkReady waits until its engine may claim it.
	stepForkTake   = "fork-snapshot"
	stepForkVolume = "fork-volume"
	stepForkReady  = "fork-ready"
)

// source returns the name of the snapshot that the operation restores.
func source(r *engine.Restoring) store.Snapshot {
	return store.Snapshot{EngineID: r.EngineID, SnapshotID: r.SnapshotID}
}

// nameTarget chooses a node and a name for the new volume. Both are in the row before the
// volume exists.
func (o *work) nameTarget(ctx context.Context) error {
	row, r := o.Row, o.Row.Op.Restoring
	node := row.NodeID
	if n, known := o.s.cluster.Node(node); !known || !o.s.canRun(n, nodePoolOf(row), row.Resources.Isolation) {
		p, err := o.s.choose(ctx, row.NodePool, row.Resources, 1, map[string]bool{node: true})
		if err != nil {
			return err
		}
		o.s.pool.Release(p.pooled) // its name is that of another engine
		node = p.node.ID
	}
	if err := o.nameVolume(ctx, (*engine.Row).FreshRestoreName); err != nil {
		return err
	}
	former := row.Place()
	r.Former, r.Target = &former, engine.Place{NodeID: node, VolumeName: row.NextVolume}
	return nil
}

func nodePoolOf(row *engine.Row) string {
	if row.NodePool == "" {
		return defaultNodePool
	}
	return row.NodePool
}

// ensureTarget creates the new volume, unless it exists.
func (o *work) ensureTarget(ctx context.Context) error {
	op := o.Row.Op
	to := &op.Restoring.Target
	v, err := o.volumeToFill(ctx, to.VolumeName, to.NodeID)
	if err != nil {
		return err
	}
	to.VolumeID, to.VolumePath = v.ID, v.Path
	op.Worker = to.NodeID
	op.Attempt++
	return nil
}

// fetch fills the new volume with the brain in the snapshot. The engine's present brain is
// not touched, and its process goes on.
func (o *work) fetch(ctx context.Context) error {
	if filled, err := o.forkIsFilled(ctx); filled || err != nil {
		return err
	}
	_, err := o.fetched(ctx)
	return err
}

// fetched is fetch with what the worker reported.
func (o *work) fetched(ctx context.Context) (*brain.Result, error) {
	r, to := o.Row.Op.Restoring, o.Row.Op.Restoring.Target
	if err := o.WhileOwned(ctx, o.awaitTurn); err != nil {
		return nil, err
	}
	key, err := o.sourceKey(ctx)
	if err != nil {
		return nil, err
	}
	url, err := o.s.opts.Snapshots.Store.ObjectURL(ctx, source(r), urlsValid)
	if err != nil {
		return nil, err
	}
	order := &brain.Order{Restore: &brain.RestoreOrder{Identity: key.Identity, URL: url, Drill: o.Row.Op.Kind == engine.OpDrill, Content: *r.Content}}
	claims, err := o.workerClaims(ctx, to.NodeID)
	if err != nil {
		return nil, err
	}
	if err := o.startWorker(ctx, order, to, !claims); err != nil {
		return nil, err
	}
	return o.awaitResult(ctx, to.NodeID)
}

// forkVolume creates the volume of a fork, unless it exists.
func (o *work) forkVolume(ctx context.Context) error {
	if o.Row.VolumeID == "" {
		v, err := o.volumeToFill(ctx, o.Row.JobID(), o.Row.NodeID)
		if err != nil {
			return err
		}
		o.Row.VolumeID, o.Row.VolumePath = v.ID, v.Path
	}
	op := o.Row.Op
	op.Restoring.Target, op.Worker = o.Row.Place(), o.Row.NodeID
	op.Attempt++
	return nil
}

// endProcess ends the engine's process. From here on the engine is down until it has the new
// brain.
func (o *work) endProcess(ctx context.Context) error {
	r := o.Row.Op.Restoring
	if r.Rescue && !r.Ended && !o.s.nodeSilent(o.Row.NodeID) {
		return engine.Errorf(engine.EngineBusy, "the engine's node is back, so the engine keeps its brain")
	}
	if !r.Ended && o.Row.Op.Taking != nil && o.unreadable() {
		return errUnreadable
	}
	r.Ended = true
	o.Row.Desired, o.Row.Restarts = engine.Running, nil
	o.Row.Op.Deadline = time.Now().UTC().Add(o.s.ops.Limit(engine.OpStop))
	if err := o.Save(ctx); err != nil {
		return err
	}
	return o.quiesce(ctx)
}

// drainFormer waits until no process of the engine is left. A process on a node that does
// not respond cannot reach the new brain; Nomad ends it when the node is back.
func (o *work) drainFormer(ctx context.Context) error {
	if o.s.nodeSilent(o.Row.NodeID) && o.Row.Op.Restoring.Target.NodeID != o.Row.NodeID {
		o.Row.Op.Restoring.Lost = true
		return nil
	}
	return o.awaitGone(ctx)
}

// beginKeep begins the snapshot of the brain that is being replaced, if it can be read.
func (o *work) beginKeep(ctx context.Context) error {
	row, op := o.Row, o.Row.Op
	if op.Restoring.Lost || row.VolumeID == "" || row.Reason == engine.ReasonBrainMissing {
		op.Taking, op.Worker, op.Step = nil, "", stepSwitchKey
		return operation.ErrDetour
	}
	if op.Taking == nil {
		op.Taking = &engine.Taking{SnapshotID: newSnapshotID(row), Trigger: engine.TriggerRestore}
	}
	op.Deadline = time.Now().UTC().Add(operation.BrainTimeout)
	return o.beginUpload(ctx)
}

// switchBrain gives the engine the new volume and the new key, in one write of its row. No
// process of the engine runs.
func (o *work) switchBrain(ctx context.Context) error {
	row, r := o.Row, o.Row.Op.Restoring
	if err := o.removeWorker(ctx); err != nil { // that of the former brain's snapshot
		return err
	}
	r.FormerKeyVersion, r.FormerKeyID = row.KeyVersion, row.KeyID
	row.KeyVersion, row.KeyID = row.Op.KeyVersion, row.Op.KeyID
	row.PutAt(r.Target)
	if r.Lost {
		row.Discard(*r.Former, time.Now().UTC())
		r.FormerVanished, r.FormerUnproven, r.FormerProven = row.Vanished, row.Unproven, row.Proven
		row.Vanished, row.Unproven, row.Proven = nil, nil, nil // they concern the former brain
	}
	return nil
}

// switchedBack reports whether the engine has its former brain.
func (o *work) switchedBack() bool {
	r := o.Row.Op.Restoring
	return r.Former == nil || o.Row.VolumeID == r.Former.VolumeID
}

// unregister ends the process that a failed restore has started.
func (o *work) unregister(ctx context.Context) error {
	if o.switchedBack() {
		return nil
	}
	o.Row.Op.Deadline = time.Now().UTC().Add(o.s.ops.Limit(engine.OpStop))
	if err := o.quiesce(ctx); err != nil {
		return err
	}
	if o.s.nodeSilent(o.Row.NodeID) && o.Row.NodeID != o.Row.Op.Restoring.Former.NodeID {
		return nil // its process cannot reach the former brain
	}
	return o.awaitGone(ctx)
}

// switchBack gives the engine its former brain and key again.
func (o *work) switchBack(context.Context) error {
	row, r := o.Row, o.Row.Op.Restoring
	if o.switchedBack() {
		return nil
	}
	if r.FormerKeyVersion != 0 {
		row.KeyVersion, row.KeyID = r.FormerKeyVersion, r.FormerKeyID
	}
	row.PutAt(*r.Former)
	if r.Lost {
		row.Vanished, row.Unproven, row.Proven = r.FormerVanished, r.FormerUnproven, r.FormerProven
	}
	row.Discarded = slices.DeleteFunc(row.Discarded, func(d engine.Discarded) bool { return d.VolumeID == row.VolumeID })
	return nil
}

// rewriteVariable writes the former key and volume into the engine's variable, which a
// failed restore or move may have changed.
func (o *work) rewriteVariable(ctx context.Context) error {
	if r := o.Row.Op.Restoring; r.FormerKeyVersion == 0 && (o.Row.Op.Kind != engine.OpMove || !r.Ended) {
		return nil
	}
	return o.writeVariable(ctx)
}

// dropTarget removes the volume of a failed restore, and what else it has made.
func (o *work) dropTarget(ctx context.Context) error {
	if err := o.dropUpload(ctx); err != nil {
		return err
	}
	to := o.Row.Op.Restoring.Target
	if to.VolumeName == "" {
		return nil
	}
	if o.s.nodeSilent(to.NodeID) {
		o.Row.Discard(to, time.Now().UTC())
		return nil
	}
	return o.discard(ctx, to)
}

// release removes the former volume and the former keys, now that the engine runs on the
// new one.
func (o *work) release(ctx context.Context) error {
	r := o.Row.Op.Restoring
	if o.Row.Op.Kind != engine.OpMove {
		if err := o.retireOldKey(ctx); err != nil {
			return err
		}
	}
	o.Row.Recovery = o.recovery()
	// Not the snapshot of the brain that was replaced: should the node be lost before the next
	// snapshot, the engine is to have this brain again.
	if c := r.Content; c != nil {
		o.Row.Snapshot = &engine.SnapshotRef{ID: r.SnapshotID, At: notAfter(r.At, time.Now().UTC()), SHA256: c.SHA256, StoredBytes: c.StoredBytes}
	}
	f := r.Former
	if f == nil || r.Unread {
		return nil
	}
	if o.s.nodeSilent(f.NodeID) {
		o.Row.Discard(*f, time.Now().UTC())
		return nil
	}
	return o.discard(ctx, *f)
}

// notAfter returns a time of a manifest, which is not signed, but not one in the future: the
// engine would seem to be protected until then.
func notAfter(at, now time.Time) time.Time {
	if at.After(now) {
		return now
	}
	return at
}

// discard deletes one volume of the engine, which is not the one in its row. What cannot be
// deleted now is deleted later (sweepDiscarded): the engine does not wait for it.
func (o *work) discard(ctx context.Context, p engine.Place) error {
	if err := o.Fence(ctx); err != nil {
		return err
	}
	err := o.s.deleteFormer(ctx, o.Row, p)
	if err == nil || ctx.Err() != nil || p.VolumeID == "" || p.VolumeID == o.Row.VolumeID {
		return err
	}
	o.Log.Warn("a volume that the engine has left cannot be deleted now; retrying later", "volume_id", p.VolumeID, "error", err)
	o.Row.Discard(p, time.Now().UTC())
	return nil
}
