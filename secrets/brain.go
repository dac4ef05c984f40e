package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"filippo.io/age"
	vault "github.com/hashicorp/vault/api"
)

// BrainKey is what the snapshots of one engine are encrypted with (age, X25519). It is not
// the engine's API key, and no rotation changes it.
type BrainKey struct {
	Identity  string `json:"identity"`  // AGE-SECRET-KEY-1..., which decrypts
	Recipient string `json:"recipient"` // age1..., which encrypts
	Owner     Owner  `json:"owner,omitzero"`
}

const brainKeys = "brains"

func brainPath(engineID string) string { return brainKeys + "/" + engineID }

// EnsureBrainKey returns the key of an engine's snapshots, and creates it if there is none.
// Of concurrent calls one creates it, and returns made. ErrDeleted: it creates none, because
// the snapshots of before need the deleted one.
func (v *Vault) EnsureBrainKey(ctx context.Context, owner Owner) (k *BrainKey, made bool, err error) {
	for range 3 { // a concurrent call may have created it
		k, version, err := v.brainKey(ctx, owner.EngineID)
		if !errors.Is(err, ErrNotFound) {
			return k, false, err
		}
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, false, fmt.Errorf("secrets: cannot generate a key: %w", err)
		}
		k = &BrainKey{Identity: id.String(), Recipient: id.Recipient().String(), Owner: owner}
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		_, err = v.kv.Put(limited, brainPath(owner.EngineID), fields(k), vault.WithCheckAndSet(version))
		cancel()
		if err = classify(err); !errors.Is(err, ErrConflict) {
			return k, err == nil, err
		}
	}
	return nil, false, fmt.Errorf("%w: the secret of the snapshots of engine %s is written and destroyed repeatedly", ErrConflict, owner.EngineID)
}

// BrainKey reads the key of an engine's snapshots. ErrNotFound: there is none, or it was
// destroyed. ErrDeleted: it can be undeleted.
func (v *Vault) BrainKey(ctx context.Context, engineID string) (*BrainKey, error) {
	k, _, err := v.brainKey(ctx, engineID)
	return k, err
}

// brainKey is BrainKey that also returns the version of the secret, which the next version
// must name. It is 0 if there is no secret.
func (v *Vault) brainKey(ctx context.Context, engineID string) (*BrainKey, int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Get(ctx, brainPath(engineID))
	if err != nil {
		return nil, 0, classify(err)
	}
	version, destroyed := 0, false
	if m := secret.VersionMetadata; m != nil {
		version, destroyed = m.Version, m.Destroyed
	}
	k := new(BrainKey)
	raw, err := json.Marshal(secret.Data)
	switch {
	case err == nil && json.Unmarshal(raw, k) == nil && k.Identity != "":
		return k, version, nil
	case destroyed:
		return nil, version, fmt.Errorf("%w: the key of the snapshots of engine %s was destroyed", ErrNotFound, engineID)
	}
	return nil, version, fmt.Errorf("%w: the newest version of the secret of the snapshots of engine %s contains no key", ErrDeleted, engineID)
}

// DestroyBrainKey destroys the key of an engine's snapshots for good. It succeeds if there
// is none.
func (v *Vault) DestroyBrainKey(ctx context.Context, engineID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(v.kv.DeleteMetadata(ctx, brainPath(engineID)))
}
