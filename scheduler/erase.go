package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/secrets"
)

// erase destroys the key of the engine's snapshots, and then the snapshots: whatever was
// copied elsewhere is unreadable from then on. If the store is away, the destroy waits for
// it after that.
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
	if err := o.s.vault.DestroyBrainKey(ctx, row.EngineID); err != nil {
		return err
	}
	at := o.s.opts.Snapshots.Store
	if t := op.Taking; t != nil && t.UploadID != "" {
		if err := at.Abort(ctx, o.taken(), t.UploadID); err != nil {
			return err
		}
		if err := at.Delete(ctx, o.taken()); err != nil {
			return err
		}
	}
	ids, err := o.s.snapshotIDs(ctx, row.EngineID)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := at.Delete(ctx, store.Snapshot{EngineID: row.EngineID, SnapshotID: id}); err != nil {
			return err
		}
	}
	e := audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID, RequestID: op.RequestID,
		Action: audit.ActionErase, Actor: actorSystem, Outcome: audit.OutcomeOK, Metadata: map[string]any{"snapshots": len(ids)},
	}
	o.s.persist(ctx, e.Action+" of "+e.EngineID, func(ctx context.Context) error { return o.s.audit.Record(ctx, e) })
	return nil
}
