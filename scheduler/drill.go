package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// The steps of a drill. It does not touch the engine, its brain or its key. The steps between
// these are those of a restore.

// placeDrill chooses the snapshot, a node with room for a worker, and the name of the volume.
// All three are in the row before the volume exists.
func (o *work) placeDrill(ctx context.Context) error {
	row, r := o.Row, o.Row.Op.Restoring
	m, err := o.s.choice(ctx, row, r.SnapshotID)
	if errors.Is(err, errNoSnapshot) { // somebody has deleted it
		m, err = o.s.newest(ctx, row)
	}
	if err != nil {
		return o.failDrill(ctx, err)
	}
	p, err := o.s.choose(ctx, row.NodePool, engine.Resources{CPUMHz: workerCPUMHz, MemoryMB: workerMemoryMB}, 1, nil)
	if err != nil {
		return err
	}
	o.s.pool.Release(p.pooled) // its name is that of another engine
	if !p.fits {
		return &engine.Error{Code: engine.CapacityExhausted, Message: "no node has room for the worker of a drill", RetryAfter: retryCapacity}
	}
	if err := o.nameVolume(ctx, (*engine.Row).FreshDrillName); err != nil {
		return err
	}
	r.SnapshotID, r.Content, r.Recipient, r.At = m.SnapshotID, &m.Content, m.Recipient, m.CreatedAt
	r.Target = engine.Place{NodeID: p.node.ID, VolumeName: row.NextVolume}
	return nil
}

// workerCPUMHz and workerMemoryMB are the resources of a worker's job
// (nomad-jobs/brain.nomad.hcl).
const workerCPUMHz, workerMemoryMB = 100, 192

// drill restores the snapshot into the volume, lets the worker check what is in it, and writes
// the result into the row.
func (o *work) drill(ctx context.Context) error {
	result, err := o.fetched(ctx)
	if err != nil {
		return o.failDrill(ctx, err)
	}
	o.Row.Recovery = o.recovery()
	o.Row.Drill = &engine.Drill{SnapshotID: o.Row.Op.Restoring.SnapshotID, At: time.Now().UTC(), Databases: result.Databases, Unchecked: result.Unchecked}
	if result.Unchecked > 0 {
		o.Log.Warn("a drill could not check some databases of a snapshot, which says nothing about them", "snapshot_id", o.Row.Drill.SnapshotID, "databases", result.Databases, "unchecked", result.Unchecked)
	}
	return nil
}

// recovery returns how long the operation has taken, as a restore.
func (o *work) recovery() *engine.Recovery {
	now := time.Now().UTC()
	return &engine.Recovery{At: now, MS: now.Sub(o.Row.Op.BeganAt).Milliseconds()}
}

// failDrill writes into the row that the snapshot cannot be restored, if the error shows that,
// and returns the error.
func (o *work) failDrill(ctx context.Context, err error) error {
	why := drillFailure(err)
	if why == "" {
		return err
	}
	row, r := o.Row, o.Row.Op.Restoring
	if r.Content != nil { // otherwise its manifest was read just now
		_, again := o.s.opts.Snapshots.Store.Manifest(ctx, store.Snapshot{EngineID: r.EngineID, SnapshotID: r.SnapshotID})
		if brain.KindOf(again) == brain.NotFound {
			return engine.Errorf(engine.EngineBusy, "somebody has deleted the snapshot during the drill")
		}
	}
	row.Drill = &engine.Drill{SnapshotID: r.SnapshotID, At: time.Now().UTC(), Failure: why}
	o.Log.Error("a restore drill has failed: the engine cannot get its memory back from this snapshot. Take a new one, and look at the snapshot store", "user_id", row.UserID, "snapshot_id", r.SnapshotID, "why", why, "error", err)
	return err
}

// drillFailure returns why a snapshot cannot be restored, without anything of the user's; "":
// the error says nothing about the snapshot.
func drillFailure(err error) string {
	switch {
	case errors.Is(err, errForeignBrainKey):
		return "the key of its snapshots in Vault names another owner"
	case errors.Is(err, secrets.ErrDeleted):
		return "the key of its snapshots was deleted or overwritten in Vault, which can bring it back (vault kv undelete, vault kv rollback)"
	case errors.Is(err, secrets.ErrNotFound):
		return "the key of its snapshots is no longer in Vault"
	case errors.Is(err, errFormerBrainKey):
		return "it is encrypted for a former key of the engine's snapshots, which is no longer in Vault"
	case errors.Is(err, errNoSnapshot):
		return "none of its snapshots is in the store"
	}
	var own *brain.Error
	if !errors.As(err, &own) {
		return ""
	}
	switch own.Kind {
	case brain.NotFound:
		return "the object of the snapshot is not in the store"
	case brain.Corrupt:
		return "the snapshot in the store is not what was stored"
	case brain.Damaged:
		return "a SQLite database in the snapshot is damaged"
	}
	return ""
}

// drilled returns the result of the drill for its audit row; nil: it has none.
func (o *work) drilled() map[string]any {
	d := o.Row.Drill
	switch {
	case d == nil || !d.At.After(o.Began.BeganAt):
		return nil
	case d.Failed():
		return map[string]any{"snapshot_id": d.SnapshotID, "failure": d.Failure}
	}
	return map[string]any{"snapshot_id": d.SnapshotID, "databases": d.Databases, "unchecked": d.Unchecked, "restore_ms": o.Row.Recovery.MS}
}

// disturbed returns an error if a drill must give way, because something is wrong with the
// engine: while its row has an operation, nobody else mends it.
func (o *work) disturbed() error {
	if o.Row.Op.Kind != engine.OpDrill || !o.s.monitor.Needs(o.Row) {
		return nil
	}
	return engine.Errorf(engine.EngineBusy, "the drill gave way, because the engine must be examined")
}

// dropDrill removes the volume of a drill. A call that the drill gives way to does not wait
// for that, and neither does one for a node that does not respond: such a volume is removed
// later (sweepDiscarded, strayDrills).
func (o *work) dropDrill(ctx context.Context) error {
	row, to := o.Row, o.Row.Op.Restoring.Target
	if to.VolumeName == "" {
		return nil
	}
	if o.s.nodeSilent(to.NodeID) || row.Op.Undo == string(engine.EngineBusy) {
		row.Discard(to, time.Now().UTC())
		return nil
	}
	if err := o.Fence(ctx); err != nil {
		return err
	}
	if err := o.s.deleteFormer(ctx, row, to); err != nil {
		if ctx.Err() != nil {
			return err
		}
		o.Log.Warn("the volume of a drill cannot be removed now; retrying later", "volume_id", to.VolumeID, "error", err)
		row.Discard(to, time.Now().UTC())
	}
	return nil
}

// prepareDrill writes a drill into an operation, if the engine may have one now.
func (s *Scheduler) prepareDrill(row *engine.Row) error {
	switch {
	case s.opts.Snapshots.Worker == "":
		return errNoWorker
	case !mayDrill(row):
		return engine.Errorf(engine.EngineBusy, "the engine has changed")
	}
	row.Op = &engine.Operation{Restoring: &engine.Restoring{EngineID: row.EngineID, SnapshotID: row.Snapshot.ID}} // see propose
	return nil
}
