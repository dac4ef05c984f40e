package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/secrets"
)

// Import brings an engine back that only the snapshot store and Vault have, and returns it
// when it runs. It has its engine_id, product and user, the brain in a snapshot ("": the
// newest), and the API key that Vault has; without one there, it gets a new key. A call for
// an engine that is being imported waits for that.
//
// SNAPSHOT_NOT_FOUND: there is no such snapshot, or nothing that decrypts it.
// SNAPSHOT_CORRUPT: its manifest is not that of this engine. PRODUCT_NOT_FOUND,
// POLICY_DENIED: the policy does not allow its image. QUOTA_EXCEEDED. ENGINE_ALREADY_EXISTS:
// the registry or the cluster has the engine, or its user has another one. After any other
// error the engine is failed, without a brain, or absent, and the same call may be made
// again. What the store and Vault have is never changed.
func (s *Scheduler) Import(ctx context.Context, engineID, snapshotID string) (*engine.Row, error) {
	if !engine.IsID(engineID) {
		return nil, errNotStored
	}
	if err := s.mayBegin(ctx, "consul", "nomad", "vault"); err != nil {
		return nil, err
	}
	if s.opts.Snapshots.Worker == "" {
		return nil, errNoWorker
	}
	if row, err := s.EngineByID(ctx, engineID); err == nil && row.Op != nil && row.Op.Restoring != nil && row.Op.Restoring.Import {
		if snapshotID != "" && snapshotID != row.Op.Restoring.SnapshotID {
			return nil, engine.BusyWith(engine.OpRestore)
		}
		return s.join(ctx, row, engine.Running)
	}
	m, err := s.choice(ctx, &engine.Row{EngineID: engineID}, snapshotID)
	if errors.Is(err, errNoSnapshot) {
		return nil, errNotStored
	}
	if err != nil {
		return nil, err
	}
	e := &StoredEngine{EngineID: engineID, Newest: m}
	if err := s.judgeStored(ctx, e); err != nil {
		return nil, err
	}
	if err := e.refusal(); err != nil {
		return nil, err
	}
	image, err := s.allowedImage(e.product, m.EngineVersion)
	if err != nil {
		return nil, err
	}
	o, err := s.beginImport(ctx, e, image)
	if err != nil {
		return nil, err
	}
	return o.Wait(ctx)
}

var errNotStored = engine.Errorf(engine.SnapshotNotFound, "the store has no such snapshot of an engine with this engine_id")

// refusal returns the error of an import of an engine that is not importable.
func (e *StoredEngine) refusal() error {
	code := engine.Code("")
	switch e.Status {
	case StoredImportable:
		return nil
	case StoredPresent, StoredInCluster, StoredUserTaken:
		code = engine.EngineAlreadyExists
	case StoredNoKey:
		code = engine.SnapshotNotFound
	case StoredNoProduct:
		code = engine.ProductNotFound
	case StoredForeign, StoredDamaged:
		code = engine.SnapshotCorrupt
	}
	return engine.Errorf(code, "the engine cannot be imported: %s", e.Why)
}

// beginImport writes the row of an engine with the operation that imports it. It is a restore
// of an engine without a brain, so that one that fails removes nothing but what it has made.
func (s *Scheduler) beginImport(ctx context.Context, e *StoredEngine, image string) (*operation.Operation, error) {
	m := e.Newest
	from := &engine.Restoring{EngineID: m.EngineID, SnapshotID: m.SnapshotID, Content: &m.Content, Recipient: m.Recipient, At: m.CreatedAt, Import: true}
	details := map[string]any{"snapshot_id": m.SnapshotID}
	if e.left != nil {
		o, err := s.propose(ctx, e.left, proposal{
			kind: engine.OpRestore, action: audit.ActionImport, actor: adminActor(ctx), details: details, backends: []string{"nomad", "vault"},
			prepare: func(row *engine.Row) error {
				row.State, row.Image, row.Digest = engine.Provisioning, image, ""
				row.Resources, row.NodePool = s.resources(e.product.Policy), e.product.Policy.NodePool
				row.Op = &engine.Operation{Restoring: from} // see propose
				return nil
			},
		})
		if errors.Is(err, registry.ErrConflict) {
			err = engine.BusyWith(engine.OpRestore)
		}
		return o, err
	}
	op := s.ops.NewOperation(ctx, engine.OpRestore, audit.ActionImport, engine.Failed)
	op.Restoring = from
	row := &engine.Row{
		EngineID: e.EngineID, ProductID: e.product.ProductID, ProductSlug: e.product.Slug, UserID: e.Owner.UserID,
		State: engine.Provisioning, Desired: engine.Stopped, Reason: engine.ReasonBrainMissing, // until it has a brain
		Image: image, Resources: s.resources(e.product.Policy), NodePool: e.product.Policy.NodePool,
		Snapshot: &engine.SnapshotRef{}, CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Op: op,
	}
	var err error
	if op.AuditID, err = s.begin(ctx, row, op.Action, adminActor(ctx), details); err != nil {
		return nil, err
	}
	operation.Hit(op.Kind, operation.AtAudited)
	launched, _ := s.ops.Reserve(op.ID)
	defer launched()
	if err := s.claimImport(ctx, e.product, row); err != nil {
		if err = s.ops.Unanswered(row, err); !errors.Is(err, operation.ErrUnanswered) { // otherwise the goroutine that watches the row completes it
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	operation.Hit(op.Kind, operation.AtClaimed)
	return s.ops.Launch(row), nil
}

// claimImport creates the row of an engine that is imported.
func (s *Scheduler) claimImport(ctx context.Context, p *engine.Product, row *engine.Row) error {
	for try := 0; ; try++ {
		err := s.store.ClaimImport(ctx, p, row)
		switch {
		case errors.Is(err, registry.ErrMoved) && try < maxClaims:
			if err := s.guard.Again(ctx); err != nil {
				return err
			}
			continue
		case errors.Is(err, registry.ErrExists):
			return existing(row)
		case errors.Is(err, registry.ErrQuota):
			return quotaExceeded(*p.Policy.MaxEngines)
		case errors.Is(err, registry.ErrConflict):
			return engine.BusyWith(engine.OpRestore) // the product has changed, or another import was faster
		}
		return err
	}
}

// switchKey writes the key that an engine has from the switch to its new brain on. A process
// of before a restore must not be usable any more, so that is a new key. Of an engine that is
// imported nothing runs, so it keeps the one that Vault has, and its product goes on.
func (o *work) switchKey(ctx context.Context) error {
	if !o.Row.Op.Restoring.Import {
		return o.writeNewKey(ctx)
	}
	k, err := o.s.vault.NewestKey(ctx, o.Row.EngineID)
	switch {
	case errors.Is(err, secrets.ErrNotFound):
		return o.writeNewKey(ctx)
	case err != nil:
		return err
	case k.Owner == secrets.Owner{} || k.ID == "": // an earlier version of the service wrote it
		return o.writeNewKey(ctx)
	case k.Owner != o.s.ownerOf(o.Row):
		return o.s.contradiction(ctx, o.Row, k.Owner)
	}
	o.Row.Op.KeyVersion, o.Row.Op.KeyID = k.Version, k.ID
	return nil
}

// ownsBrain reports whether an operation may restore the snapshots of a key: those of its own
// engine, or, in a fork, those of another engine of its product.
func (o *work) ownsBrain(owner secrets.Owner) bool {
	if o.Row.Op.Restoring.Import {
		return owner == o.s.ownerOf(o.Row)
	}
	return owner.ProductID == o.Row.ProductID && owner.Deployment == o.s.guard.ID()
}
