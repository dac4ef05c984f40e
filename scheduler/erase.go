package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// erase destroys the key of the engine's snapshots: whatever was copied elsewhere is unreadable
// from then on. Then it removes everything of the engine from the snapshot store, also what
// failed snapshots have left there. If the store is away, the destroy waits for it after the
// key is destroyed.
func (o *work) erase(ctx context.Context) error {
	row, op := o.Row, o.Row.Op
	has := row.Snapshot != nil
	if !has { // or its row was rebuilt from witnesses, which do not know its snapshots
		_, err := o.s.vault.BrainKey(ctx, row.EngineID)
		has = err == nil || errors.Is(err, secrets.ErrDeleted) // or else it could be undeleted
		if !has && !errors.Is(err, secrets.ErrNotFound) {
			return err
		}
	}
	if !has && op.Attempt == 0 {
		return nil // it never had a worker or a key
	}
	if err := o.s.removeWorkers(ctx, workersOf(row.EngineID)); err != nil {
		return err
	}
	if !has {
		return nil // a fork that failed
	}
	if row.Snapshot == nil { // whoever repeats this would find no key, and leave the snapshots
		row.Snapshot = &engine.SnapshotRef{}
		if err := o.Save(ctx); err != nil {
			return err
		}
	}
	if err := o.s.vault.DestroyBrainKey(ctx, row.EngineID); err != nil {
		return err
	}
	at := o.s.opts.Snapshots.Store
	if t := op.Taking; t != nil && t.UploadID != "" { // some stores list an upload late
		if err := at.Abort(ctx, o.taken(), t.UploadID); err != nil {
			return err
		}
	}
	snapshots, err := at.Erase(ctx, row.EngineID)
	if err != nil {
		return err
	}
	e := audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID, RequestID: op.RequestID,
		Action: audit.ActionErase, Actor: actorSystem, Outcome: audit.OutcomeOK, Metadata: map[string]any{"snapshots": snapshots},
	}
	o.s.persist(ctx, e.Action+" of "+e.EngineID, func(ctx context.Context) error { return o.s.audit.Record(ctx, e) })
	return nil
}
