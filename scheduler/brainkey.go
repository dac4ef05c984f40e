package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// ensureBrainKey returns the key for a snapshot of the engine, and makes it before the first
// one.
func (o *work) ensureBrainKey(ctx context.Context) (*secrets.BrainKey, error) {
	owner := o.s.ownerOf(o.Row)
	key, made, err := o.s.vault.EnsureBrainKey(ctx, owner)
	if err != nil {
		return nil, err
	}
	if key.Owner != owner {
		return nil, o.foreignBrainKey(key)
	}
	if last := o.Row.Snapshot; made && last != nil && last.ID != "" {
		o.Log.Error("the key of an engine's snapshots was no longer in Vault, so a new one was made: nobody can read the snapshots of before, unless the former key is restored from a backup", "user_id", o.Row.UserID, "last_snapshot", last.ID)
	}
	return key, nil
}

// sourceKey returns the key of the snapshot that the operation restores.
func (o *work) sourceKey(ctx context.Context) (*secrets.BrainKey, error) {
	r := o.Row.Op.Restoring
	key, err := o.s.vault.BrainKey(ctx, r.EngineID)
	switch {
	case err != nil:
		return nil, noBrainKey(err)
	case !o.ownsBrain(key.Owner):
		return nil, o.foreignBrainKey(key)
	case r.Recipient != "" && r.Recipient != key.Recipient:
		return nil, errFormerBrainKey
	}
	return key, nil
}

// errFormerBrainKey is the error of a restore whose snapshot is encrypted for another key than
// the one that Vault has.
var errFormerBrainKey = engine.Errorf(engine.SnapshotNotFound, "the snapshot is encrypted for a former key of the engine's snapshots, which is not in the key store (Vault) any more, so nobody can read it: restore a newer one")

// copyToken returns the token for the request to copy. Every owner of the operation can
// make it, and nobody without the key of the engine's snapshots.
func (o *work) copyToken(ctx context.Context) (string, error) {
	key, err := o.s.vault.BrainKey(ctx, o.Row.EngineID)
	if errors.Is(err, secrets.ErrNotFound) || err == nil && key.Recipient != o.Row.Op.Taking.Recipient {
		return "", &engine.Error{Code: engine.BackendError, Message: "the key of the engine's snapshots was removed from the key store (Vault) during the snapshot; retry: a new key is made", Err: err}
	}
	if err != nil {
		return "", err
	}
	return secrets.Hash("copy " + o.worker() + " " + key.Identity), nil
}

// foreignBrainKey returns the error of an operation whose snapshots are encrypted for another
// owner. The engine itself is not in doubt: its own secret decides about that.
func (o *work) foreignBrainKey(k *secrets.BrainKey) error {
	o.Log.Error("the key of an engine's snapshots in Vault names another owner", "vault_engine", k.Owner.EngineID, "vault_product", k.Owner.ProductID, "vault_deployment", k.Owner.Deployment)
	return &engine.Error{Code: engine.SnapshotFailed, Message: "the key of the snapshots in the key store (Vault) names another owner; an operator must decide: the service's log names it", Err: errForeignBrainKey}
}

var errForeignBrainKey = errors.New("the key of the snapshots names another owner")

// noBrainKey returns the error of a restore whose snapshot nobody can decrypt.
func noBrainKey(err error) error {
	if errors.Is(err, secrets.ErrNotFound) {
		return &engine.Error{Code: engine.SnapshotNotFound, Message: "the key of the snapshot is not in the key store (Vault), so nobody can read it: it was destroyed with its engine, or removed there", Err: err}
	}
	return err
}
