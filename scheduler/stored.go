package scheduler

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// StoredStatus says whether an engine of the snapshot store can be imported.
type StoredStatus string

// The statuses.
const (
	// StoredImportable: an import brings it back.
	StoredImportable StoredStatus = "importable"
	// StoredPresent: the registry has it, so there is nothing to import.
	StoredPresent StoredStatus = "present"
	// StoredInCluster: Nomad or Consul has something of it. Perhaps it exists, with a newer
	// brain, and the registry has only lost its row.
	StoredInCluster StoredStatus = "in_cluster"
	// StoredNoKey: Vault does not have the key of its newest snapshot. It was destroyed with the
	// engine, is lost or replaced, or was deleted and can be undeleted.
	StoredNoKey StoredStatus = "no_key"
	// StoredForeign: its manifest, the key of its snapshots and its secret in Vault do not name
	// the same owner.
	StoredForeign StoredStatus = "foreign"
	// StoredNoProduct: its product does not exist.
	StoredNoProduct StoredStatus = "no_product"
	// StoredUserTaken: its user has another engine.
	StoredUserTaken StoredStatus = "user_taken"
	// StoredDamaged: its newest manifest cannot be read.
	StoredDamaged StoredStatus = "damaged"
)

// StoredStatuses lists all of them.
var StoredStatuses = []StoredStatus{
	StoredImportable, StoredPresent, StoredInCluster, StoredNoKey, StoredForeign, StoredNoProduct, StoredUserTaken, StoredDamaged,
}

// StoredEngine is an engine of which the snapshot store has snapshots.
type StoredEngine struct {
	EngineID string
	// Owner is the owner in Vault; without the key there, it is what the manifest claims.
	Owner secrets.Owner
	// Newest is the snapshot that an import restores; nil: it cannot be read.
	Newest *brain.Manifest
	// Snapshots is how many there are.
	Snapshots int
	Status    StoredStatus
	// Why says, for the admin, why it is not importable.
	Why string

	// The following are set as far as the status was decided by them. left is the row that a
	// failed import has left, and product the product of the owner.
	left    *engine.Row
	product *engine.Product
}

// judges is how many engines of the store are judged concurrently.
const judges = 8

// StoredEngines lists the engines of which the snapshot store has snapshots, in the order of
// the store. The first page has the cursor "", and next is that of the next page, or "".
// REGISTRY_RECOVERING: until the registry is complete, nothing can be said about them.
// SNAPSHOT_STORE_UNAVAILABLE, BACKEND_UNAVAILABLE.
func (s *Scheduler) StoredEngines(ctx context.Context, limit int, cursor string) (list []*StoredEngine, next string, err error) {
	if cursor != "" && !brain.IsID(cursor) {
		return nil, "", engine.Errorf(engine.InvalidRequest, "cursor is not one that this call has returned")
	}
	if err := s.checks.need(ctx, "consul", "nomad", "vault"); err != nil {
		return nil, "", err
	}
	if err := s.Ready(); err != nil {
		return nil, "", err
	}
	if err := s.guard.Await(ctx); err != nil {
		return nil, "", err
	}
	var last *StoredEngine
	for of, err := range s.opts.Snapshots.Store.All(ctx, cursor) {
		if err != nil {
			return nil, "", err
		}
		if last == nil || last.EngineID != of.EngineID {
			if len(list) == limit {
				next = last.EngineID
				break
			}
			last = &StoredEngine{EngineID: of.EngineID}
			list = append(list, last)
		}
		last.Snapshots++
	}
	work, judging := errgroup.WithContext(ctx)
	work.SetLimit(judges)
	for _, e := range list {
		work.Go(func() error {
			var err error
			e.Newest, err = s.choice(judging, &engine.Row{EngineID: e.EngineID}, "")
			switch {
			case errors.Is(err, errNoSnapshot): // they were deleted meanwhile
				return nil
			case err != nil && brain.KindOf(err) != brain.Corrupt:
				return err
			}
			return s.judgeStored(judging, e)
		})
	}
	if err := work.Wait(); err != nil {
		return nil, "", err
	}
	return slices.DeleteFunc(list, func(e *StoredEngine) bool { return e.Status == "" }), next, nil
}

// judgeStored decides whether an engine of the store can be imported. What the store says is
// not trusted: whoever may write to it can write every manifest. The owner comes from Vault,
// from the record of the key with which the snapshots are encrypted, which nothing can
// decrypt for another engine.
func (s *Scheduler) judgeStored(ctx context.Context, e *StoredEngine) error {
	say := func(status StoredStatus, why string) error {
		e.Status, e.Why = status, why
		return nil
	}
	m := e.Newest
	if m != nil && productIDPattern.MatchString(m.ProductID) && engine.CheckUserID(m.UserID) == nil {
		e.Owner = secrets.Owner{ProductID: m.ProductID, UserID: m.UserID, EngineID: e.EngineID}
	}
	row, err := s.EngineByID(ctx, e.EngineID)
	switch {
	case err == nil && unfinished(row):
		e.left = row
	case err == nil:
		e.Owner = s.ownerOf(row)
		return say(StoredPresent, "it is "+string(row.State))
	case AsError(err).Code == engine.RecordUnreadable:
		return say(StoredPresent, "its row cannot be read")
	case AsError(err).Code != engine.EngineNotFound:
		return err
	}
	key, err := s.vault.BrainKey(ctx, e.EngineID)
	if errors.Is(err, secrets.ErrNotFound) {
		return say(StoredNoKey, "Vault does not have the key of its snapshots: it was destroyed with the engine, or is lost")
	}
	if errors.Is(err, secrets.ErrDeleted) {
		return say(StoredNoKey, "the key of its snapshots was deleted or overwritten in Vault: bring it back with vault kv undelete or vault kv rollback")
	}
	if err != nil {
		return err
	}
	if key.Owner.Deployment != s.guard.ID() || key.Owner.EngineID != e.EngineID || engine.CheckUserID(key.Owner.UserID) != nil {
		return say(StoredForeign, "the key of its snapshots in Vault names another deployment or engine")
	}
	e.Owner = key.Owner
	if m == nil {
		return say(StoredDamaged, "its newest manifest cannot be read; name an older snapshot")
	}
	if m.ProductID != key.Owner.ProductID || m.UserID != key.Owner.UserID {
		return say(StoredForeign, "its newest manifest names another owner than Vault: somebody else has written to the store")
	}
	if m.Recipient != key.Recipient {
		return say(StoredNoKey, "its snapshot is encrypted for another key than the one that Vault has: the former one is lost, or somebody else has written to the store; name another snapshot")
	}
	secret, err := s.vault.NewestKey(ctx, e.EngineID)
	switch {
	case errors.Is(err, secrets.ErrNotFound): // it gets a new one
	case err != nil:
		return err
	case secret.Owner != secrets.Owner{} && secret.Owner != key.Owner:
		return say(StoredForeign, "its API key and the key of its snapshots in Vault name different owners")
	}
	if e.product, err = s.store.Product(ctx, key.Owner.ProductID); errors.Is(err, registry.ErrNotFound) {
		return say(StoredNoProduct, "its product does not exist")
	} else if err != nil {
		return s.askToMend(err)
	}
	return s.judgePlace(ctx, e, say)
}

// judgePlace decides whether the user has no other engine, and the cluster nothing of this
// one.
func (s *Scheduler) judgePlace(ctx context.Context, e *StoredEngine, say func(StoredStatus, string) error) error {
	has, err := s.store.Engine(ctx, e.Owner.ProductID, e.Owner.UserID)
	switch {
	case errors.As(err, new(*registry.Unreadable)):
		return say(StoredUserTaken, "the user has a row that cannot be read")
	case err == nil && has.EngineID != e.EngineID:
		return say(StoredUserTaken, "the user has engine "+has.EngineID+" now")
	case err == nil && !unfinished(has):
		return say(StoredPresent, "it is "+string(has.State))
	case err == nil:
		e.left = has
		return say(StoredImportable, "")
	case !errors.Is(err, registry.ErrNotFound):
		return err
	}
	f, err := s.reconcile.Find(ctx, e.EngineID)
	if err != nil {
		return err
	}
	what := slices.DeleteFunc(f.Parts(), func(part string) bool { return part == "key" })
	if len(what) == 0 {
		served, err := s.store.Served(ctx, engine.JobID(e.EngineID))
		if err != nil {
			return err
		}
		if served {
			what = append(what, "service")
		}
	}
	if len(what) > 0 {
		return say(StoredInCluster, "Nomad or Consul has its "+what[0]+", so it may exist and have a newer brain: see orch registry recover and orch engine quarantine")
	}
	return say(StoredImportable, "")
}

// unfinished reports whether a row is what an import that failed has left: the engine has
// nothing yet.
func unfinished(row *engine.Row) bool {
	return row.State == engine.Failed && row.Reason == engine.ReasonBrainMissing && row.NodeID == "" && row.VolumeID == "" && row.Op == nil
}
