package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// newSnapshotID returns the id of a new snapshot of an engine. It is after that of the newest
// one, even if that was taken by a replica whose clock was ahead.
func newSnapshotID(row *engine.Row) string {
	at := time.Now().UTC()
	if row.Snapshot != nil {
		stamp, _, _ := strings.Cut(row.Snapshot.ID, "-")
		if last, err := time.Parse(snapshotTime, stamp); err == nil && !last.Before(at.Truncate(time.Second)) {
			at = last.Add(time.Second)
		}
	}
	return snapshotID(at, strings.ToLower(rand.Text()))
}

// snapshotTime is the time in the id of a snapshot: by their names, snapshots are in the
// order of time.
const snapshotTime = "20060102t150405z"

func snapshotID(at time.Time, unique string) string {
	return at.UTC().Format(snapshotTime) + "-" + unique[:12]
}

// Snapshot takes a snapshot of the caller's engine, and returns it when it is stored. A
// running engine is frozen while its brain is copied on the node.
//
// ENGINE_NOT_FOUND, ENGINE_BUSY, SNAPSHOT_STORE_UNAVAILABLE, SNAPSHOT_FAILED,
// STOP_UNCONFIRMED; after each of them nothing has changed.
func (s *Scheduler) Snapshot(ctx context.Context, caller *Caller, label string) (*brain.Manifest, error) {
	id := ""
	caller.of = label
	row, err := s.change(ctx, caller, engine.OpSnapshot, audit.ActionSnapshot, "", []string{"nomad", "vault"}, func(row *engine.Row) error {
		id = newSnapshotID(row)
		if ref := row.Idempotency; ref != nil { // a repeated call finds the snapshot by the key's record
			id = snapshotID(ref.CreatedAt, ref.Key)
		}
		return s.prepareSnapshot(row, &engine.Taking{SnapshotID: id, Trigger: engine.TriggerCall, Label: label})
	})
	if err != nil {
		return nil, err
	}
	if caller.repeated != nil {
		id = snapshotID(caller.repeated.CreatedAt, caller.repeated.Key)
	}
	return s.manifest(ctx, store.Snapshot{EngineID: row.EngineID, SnapshotID: id})
}

// prepareSnapshot writes a snapshot that is to be taken into an operation, if the engine's
// brain can be read.
func (s *Scheduler) prepareSnapshot(row *engine.Row, t *engine.Taking) error {
	alloc, known := s.cluster.Newest(row.JobID())
	runs := known && !alloc.Terminal()
	switch {
	case s.opts.Snapshots.Worker == "":
		return errNoWorker
	case row.State == engine.Provisioning || row.State == engine.Destroying:
		return engine.BusyWith(engine.OpDestroy)
	case row.VolumeID == "" || row.Reason == engine.ReasonBrainMissing:
		return engine.Errorf(engine.SnapshotFailed, "the engine has no brain")
	case s.nodeSilent(row.NodeID):
		return &engine.Error{Code: engine.SnapshotFailed, Message: "the engine's node does not respond, so its brain cannot be read", Err: errNodeSilent, RetryAfter: retryCapacity}
	case len(row.Unproven) > 0 || row.Vanished != nil:
		return engine.Errorf(engine.StopUnconfirmed, "it cannot be confirmed that the engine's previous process has ended, so its brain may change during a copy; retry later")
	case row.Frozen != nil: // its process stays as it is
	case row.State == engine.Running && (!runs || alloc.ID != row.AllocID):
		return engine.Errorf(engine.EngineBusy, "the engine's process is being replaced; retry in a moment")
	case runs:
		t.AllocID = alloc.ID
	}
	if row.Snapshot == nil {
		row.Snapshot = &engine.SnapshotRef{} // it may have one from now on
	}
	row.Op = &engine.Operation{Taking: t} // see propose
	return nil
}

// Snapshots lists the snapshots of the caller's engine, newest first. The first page has the
// cursor "", and next is that of the next page, or "". ENGINE_NOT_FOUND,
// SNAPSHOT_STORE_UNAVAILABLE.
func (s *Scheduler) Snapshots(ctx context.Context, caller *Caller, limit int, cursor string) (list []*brain.Manifest, next string, err error) {
	row, err := caller.engine()
	if err != nil {
		return nil, "", err
	}
	if cursor != "" && !brain.IsID(cursor) {
		return nil, "", engine.Errorf(engine.InvalidRequest, "cursor is not one that this call has returned")
	}
	ids, err := s.snapshotIDs(ctx, row.EngineID)
	if err != nil {
		return nil, "", err
	}
	for _, id := range ids {
		if cursor != "" && id >= cursor {
			continue
		}
		if len(list) == limit {
			return list, list[limit-1].SnapshotID, nil
		}
		m, err := s.opts.Snapshots.Store.Manifest(ctx, store.Snapshot{EngineID: row.EngineID, SnapshotID: id})
		switch kind := brain.KindOf(err); {
		case kind == brain.NotFound: // deleted meanwhile
		case kind == brain.Corrupt:
			s.log.Warn("the manifest of a snapshot cannot be used", "engine_id", row.EngineID, "snapshot_id", id, "error", err)
		case err != nil:
			return nil, "", err
		default:
			list = append(list, m)
		}
	}
	return list, "", nil
}

// snapshotIDs lists the ids of an engine's snapshots, newest first.
func (s *Scheduler) snapshotIDs(ctx context.Context, engineID string) ([]string, error) {
	var ids []string
	for of, err := range s.opts.Snapshots.Store.List(ctx, engineID) {
		if err != nil {
			return nil, err
		}
		ids = append(ids, of.SnapshotID)
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids, nil
}

// DeleteSnapshot deletes a snapshot of the caller's engine. A restore from it that is in
// progress fails, and harms nothing. ENGINE_NOT_FOUND, SNAPSHOT_NOT_FOUND,
// SNAPSHOT_STORE_UNAVAILABLE.
func (s *Scheduler) DeleteSnapshot(ctx context.Context, caller *Caller, snapshotID string) (err error) {
	row, err := caller.engine()
	if err != nil {
		return err
	}
	of := store.Snapshot{EngineID: row.EngineID, SnapshotID: snapshotID}
	if !brain.IsID(snapshotID) {
		return errNoSnapshot
	}
	if err := s.mayBegin(ctx); err != nil {
		return err
	}
	if _, err := s.opts.Snapshots.Store.Manifest(ctx, of); err != nil && brain.KindOf(err) != brain.Corrupt {
		return err
	}
	began := time.Now()
	id, err := s.begin(ctx, row, audit.ActionSnapshotDelete, caller.Product.Slug, map[string]any{"snapshot_id": snapshotID})
	if err != nil {
		return err
	}
	err = s.opts.Snapshots.Store.Delete(ctx, of)
	s.abandon(ctx, id, began, err)
	if err == nil && !s.noteDeleted(ctx, caller, snapshotID) {
		s.ops.Background(func(ctx context.Context) {
			for until := time.Now().Add(noteDeletedFor); time.Now().Before(until) && pause.For(ctx, noteDeletedEvery); {
				if s.noteDeleted(ctx, caller, snapshotID) {
					return
				}
			}
		})
	}
	return err
}

// noteDeletedFor is how long the end of an operation is awaited before a row is changed, and
// noteDeletedEvery the interval of looking.
const noteDeletedFor, noteDeletedEvery = operation.BrainTimeout, 2 * time.Second

// noteDeleted writes into the row which snapshot is the newest one, after that one was
// deleted: otherwise the engine would seem to be protected by it, and a drill of it would
// fail. It reports false while an operation has the row. If the row cannot be written, the next
// snapshot corrects it.
func (s *Scheduler) noteDeleted(ctx context.Context, caller *Caller, snapshotID string) bool {
	err := caller.refresh(ctx, s)
	for range maxClaims {
		var row *engine.Row
		if err == nil {
			row, err = caller.engine()
		}
		if err != nil || row.Snapshot == nil || row.Snapshot.ID != snapshotID {
			break
		}
		if row.Op != nil {
			return false
		}
		row = row.Clone()
		row.Snapshot = &engine.SnapshotRef{}
		m, merr := s.newest(ctx, row)
		switch {
		case merr == nil:
			row.Snapshot = &engine.SnapshotRef{ID: m.SnapshotID, At: m.CreatedAt, SHA256: m.SHA256, StoredBytes: m.StoredBytes}
		case !errors.Is(merr, errNoSnapshot):
			err = merr
			continue
		}
		if err = s.store.Update(ctx, row); !errors.Is(err, registry.ErrConflict) {
			break
		}
		err = caller.refresh(ctx, s)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("cannot note that the newest snapshot of an engine was deleted", "user_id", caller.UserID, "snapshot_id", snapshotID, "error", err)
	}
	return true
}

var errNoSnapshot = engine.Errorf(engine.SnapshotNotFound, "the engine has no such snapshot")

// manifest reads the manifest of a snapshot.
func (s *Scheduler) manifest(ctx context.Context, of store.Snapshot) (*brain.Manifest, error) {
	m, err := s.opts.Snapshots.Store.Manifest(ctx, of)
	if brain.KindOf(err) == brain.NotFound {
		return nil, errNoSnapshot
	}
	return m, err
}
