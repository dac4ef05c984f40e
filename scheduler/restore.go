package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
)

// Restore gives the caller's engine the brain in a snapshot ("": the newest) and a new key,
// and returns both when the engine runs on it. Before the engine is stopped, the brain is
// rebuilt in a new volume, so that a snapshot that cannot be restored harms nothing. The
// present brain becomes a snapshot, if it can be read, and is deleted when the engine runs
// on the other one. If the engine's node does not respond, the engine comes up on another
// node; the process and the brain that it leaves are removed when its node is back.
//
// ENGINE_NOT_FOUND, ENGINE_BUSY, SNAPSHOT_NOT_FOUND, SNAPSHOT_CORRUPT,
// SNAPSHOT_STORE_UNAVAILABLE, SNAPSHOT_FAILED, and the errors of Start. After each of them
// the engine has the brain and the key that it had. If it ran and had been stopped, it is
// failed and the service starts it again.
func (s *Scheduler) Restore(ctx context.Context, caller *Caller, snapshotID string) (*engine.Row, string, error) {
	caller.of = snapshotID
	done, _, err := s.recall(ctx, caller, engine.OpRestore)
	if err != nil {
		return nil, "", err
	}
	if done != nil {
		row, err := s.again(ctx, caller, done, engine.Running)
		if err != nil {
			return nil, "", err
		}
		return s.keyOf(ctx, caller, row)
	}
	row, err := caller.engine()
	if err != nil {
		return nil, "", err
	}
	if op := row.Op; op != nil && op.Kind != engine.OpRestore && !yields(row) {
		return nil, "", engine.BusyWith(op.Kind)
	}
	if err := s.mayRestore(ctx, row); err != nil {
		return nil, "", err
	}
	m, err := s.choice(ctx, row, snapshotID)
	if err != nil {
		return nil, "", err
	}
	caller.restores = store.Snapshot{EngineID: m.EngineID, SnapshotID: m.SnapshotID}
	restored, err := s.change(ctx, caller, engine.OpRestore, audit.ActionRestore, engine.Running, []string{"nomad", "vault"}, func(row *engine.Row) error {
		return s.prepareRestore(row, m)
	})
	if err != nil {
		return nil, "", err
	}
	return s.keyOf(ctx, caller, restored)
}

// mayRestore returns an error unless the snapshots of an engine may be used: nothing is told
// of them while the registry recovers, or to a stranger.
func (s *Scheduler) mayRestore(ctx context.Context, row *engine.Row) error {
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return err
	}
	return s.ownedBy(ctx, row)
}

// choice returns the manifest of a snapshot of an engine; "": of its newest one.
func (s *Scheduler) choice(ctx context.Context, row *engine.Row, snapshotID string) (*brain.Manifest, error) {
	if snapshotID == "" {
		return s.newest(ctx, row)
	}
	if !brain.IsID(snapshotID) {
		return nil, errNoSnapshot
	}
	m, err := s.manifest(ctx, store.Snapshot{EngineID: row.EngineID, SnapshotID: snapshotID})
	if err != nil {
		return nil, err
	}
	if ref := row.Snapshot; ref != nil && ref.ID == m.SnapshotID && ref.SHA256 != m.SHA256 {
		return nil, brain.Errorf(brain.Corrupt, "the manifest of %s is not the one that was stored", m.SnapshotID)
	}
	return m, nil
}

// newest returns the manifest of the newest snapshot of an engine. That is not one of a brain
// that a restore replaced, as long as there is another one: a repeated restore would bring
// back what the first one was to replace.
func (s *Scheduler) newest(ctx context.Context, row *engine.Row) (*brain.Manifest, error) {
	ids, err := s.snapshotIDs(ctx, row.EngineID)
	if err != nil {
		return nil, err
	}
	var replaced *brain.Manifest
	for _, id := range ids {
		m, err := s.choice(ctx, row, id)
		switch {
		case errors.Is(err, errNoSnapshot): // deleted meanwhile
		case err != nil:
			return nil, err
		case m.Trigger != engine.TriggerRestore:
			return m, nil
		case replaced == nil:
			replaced = m
		}
	}
	if replaced == nil {
		return nil, errNoSnapshot
	}
	return replaced, nil
}

// prepareRestore writes a restore into an operation.
func (s *Scheduler) prepareRestore(row *engine.Row, m *brain.Manifest) error {
	if s.opts.Snapshots.Worker == "" {
		return errNoWorker
	}
	switch row.State {
	case engine.Running:
	case engine.Stopped, engine.Sleeping, engine.Failed:
		row.State = engine.Provisioning
	default:
		return engine.BusyWith(engine.OpDestroy)
	}
	if row.Snapshot == nil {
		row.Snapshot = &engine.SnapshotRef{}
	}
	op := &engine.Operation{Restoring: &engine.Restoring{EngineID: m.EngineID, SnapshotID: m.SnapshotID, Content: &m.Content, Recipient: m.Recipient, At: m.CreatedAt}}
	if row.VolumeID != "" && row.Reason != engine.ReasonBrainMissing && !s.nodeSilent(row.NodeID) {
		op.Taking = &engine.Taking{SnapshotID: newSnapshotID(row), Trigger: engine.TriggerRestore}
	}
	row.Op = op // see propose
	return nil
}

// Fork provisions an engine for another user of the caller's product, with the brain in a
// snapshot of the caller's engine ("": one that is taken now), and returns it with its key.
//
// The errors of Snapshot, and of Provision for the other user.
func (s *Scheduler) Fork(ctx context.Context, caller *Caller, userID, snapshotID string) (*engine.Row, string, error) {
	from := &engine.Restoring{UserID: caller.UserID}
	into := &Caller{UserID: userID, keyHash: caller.keyHash}
	if err := into.refresh(ctx, s); err != nil {
		return nil, "", err
	}
	opts := ProvisionOptions{IdempotencyKey: caller.IdempotencyKey, from: from, fromAsked: snapshotID}
	if made, _, err := s.replay(ctx, into, opts); err != nil {
		return nil, "", err
	} else if made != nil {
		return s.keyOf(ctx, into, made)
	}
	row, err := caller.engine()
	if err != nil {
		return nil, "", err
	}
	if s.opts.Snapshots.Worker == "" {
		return nil, "", errNoWorker
	}
	opts.Image, from.EngineID = row.Image, row.EngineID
	if snapshotID == "" {
		from.SnapshotID = newSnapshotID(row)
	} else {
		if err := s.mayRestore(ctx, row); err != nil {
			return nil, "", err
		}
		m, err := s.choice(ctx, row, snapshotID)
		if err != nil {
			return nil, "", err
		}
		from.SnapshotID, from.Content, from.Recipient = m.SnapshotID, &m.Content, m.Recipient
	}
	return s.Provision(ctx, into, opts)
}
