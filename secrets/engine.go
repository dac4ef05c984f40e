package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	vault "github.com/hashicorp/vault/api"
)

// Owner is the owner of an engine. It is stored in the engine's secret in Vault and in the
// engine's row in the registry, so that the loss of one store does not lose it. The
// zero Owner means unknown: an earlier version of the service wrote secrets without owners.
type Owner struct {
	Deployment string `json:"deployment,omitempty"` // the deployment's id
	ProductID  string `json:"product_id,omitempty"`
	UserID     string `json:"user_id,omitempty"`
	EngineID   string `json:"engine_id,omitempty"`
}

// EngineKey is one version of an engine's secret.
type EngineKey struct {
	// Key is the key in plain text.
	Key string `json:"api_key"`
	// ID identifies this key. A version number does not, because a Vault that was restored
	// from a backup uses numbers again. ID is empty in secrets of an earlier version of the
	// service.
	ID    string `json:"key_id,omitempty"`
	Owner Owner  `json:"owner,omitzero"`
	// Operation is the id of the operation that wrote this version.
	Operation string `json:"operation,omitempty"`
	// Version is the secret's version in Vault.
	Version int `json:"-"`
}

func enginePath(engineID string) string { return "engines/" + engineID }

// PutEngineKey writes k as the version after current (0: as the first version), and sets
// k.Version. ErrConflict: current is not the newest version.
func (v *Vault) PutEngineKey(ctx context.Context, engineID string, k *EngineKey, current int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Put(ctx, enginePath(engineID), fields(k), vault.WithCheckAndSet(current))
	if err != nil {
		return classify(err)
	}
	k.Version = secret.VersionMetadata.Version
	v.remember(engineID, k)
	return nil
}

// EngineKey reads one version of an engine's secret. With a keyID it returns exactly that
// key, or ErrNotFound. Without one, for a row of an earlier version of the service, it
// returns the version as Vault has it now, without the cache. The caller must not modify
// the result, which is shared.
func (v *Vault) EngineKey(ctx context.Context, engineID string, number int, keyID string) (*EngineKey, error) {
	if number < 1 { // for Vault, 0 means the newest version, which changes
		return nil, fmt.Errorf("%w: engine %s has no key version %d", ErrNotFound, engineID, number)
	}
	if known := v.known(engineID, number, keyID); known != nil {
		return known, nil
	}
	k, err := v.readKey(ctx, engineID, number)
	if err != nil {
		return nil, err
	}
	if keyID != "" && k.ID != keyID {
		return nil, fmt.Errorf("%w: version %d of engine %s contains another key than the requested one", ErrNotFound, number, engineID)
	}
	v.remember(engineID, k)
	return k, nil
}

// NewestKey reads the newest version of an engine's secret, without the cache. ErrNotFound:
// there is none, or it was destroyed.
func (v *Vault) NewestKey(ctx context.Context, engineID string) (*EngineKey, error) {
	return v.readKey(ctx, engineID, 0)
}

// Keys reads all versions of an engine's secret that were not destroyed, newest first.
func (v *Vault) Keys(ctx context.Context, engineID string) ([]*EngineKey, error) {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	meta, err := v.kv.GetMetadata(limited, enginePath(engineID))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, m := range meta.Versions {
		if !m.Destroyed && m.DeletionTime.IsZero() {
			numbers = append(numbers, m.Version)
		}
	}
	slices.Sort(numbers)
	var keys []*EngineKey
	for _, n := range slices.Backward(numbers) {
		k, err := v.readKey(ctx, engineID, n)
		if errors.Is(err, ErrNotFound) {
			continue // destroyed meanwhile, or not an engine key
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// HasKey reports whether Vault has this key, without the cache.
func (v *Vault) HasKey(ctx context.Context, engineID string, number int, keyID string) (bool, error) {
	if number < 1 {
		return false, nil
	}
	k, err := v.readKey(ctx, engineID, number)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && (keyID == "" || k.ID == keyID), err
}

// readKey reads a version from Vault; 0: the newest.
func (v *Vault) readKey(ctx context.Context, engineID string, number int) (*EngineKey, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var secret *vault.KVSecret
	var err error
	if number == 0 {
		secret, err = v.kv.Get(ctx, enginePath(engineID))
	} else {
		secret, err = v.kv.GetVersion(ctx, enginePath(engineID), number)
	}
	if err != nil {
		return nil, classify(err)
	}
	k := new(EngineKey)
	if raw, merr := json.Marshal(secret.Data); merr != nil || json.Unmarshal(raw, k) != nil || !isEngineKey(k.Key) {
		return nil, fmt.Errorf("%w: version %d of engine %s contains no key", ErrNotFound, number, engineID)
	}
	k.Version = secret.VersionMetadata.Version
	return k, nil
}

// NewestVersion returns the number of the last version that was ever written, or 0 if there
// is none.
func (v *Vault) NewestVersion(ctx context.Context, engineID string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return v.newestOf(ctx, enginePath(engineID))
}

// DestroyVersionsBefore permanently destroys all versions of an engine's secret that are
// older than number.
func (v *Vault) DestroyVersionsBefore(ctx context.Context, engineID string, number int) error {
	if number <= 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	old := make([]int, 0, number-1)
	// Vault keeps the ten newest versions by default; older ones no longer exist.
	for n := max(1, number-10); n < number; n++ {
		old = append(old, n)
	}
	v.forget(engineID, number)
	return classify(v.kv.Destroy(ctx, enginePath(engineID), old))
}

// DeleteEngine deletes all versions of an engine's secret, and their metadata.
func (v *Vault) DeleteEngine(ctx context.Context, engineID string) error {
	v.forget(engineID, 0)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(v.kv.DeleteMetadata(ctx, enginePath(engineID)))
}

// EngineIDs lists the engines that have a secret below this mount.
func (v *Vault) EngineIDs(ctx context.Context) ([]string, error) { return v.names(ctx, "engines") }

// names lists the names directly below a path of the mount.
func (v *Vault) names(ctx context.Context, below string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.client.Logical().ListWithContext(ctx, v.mount+"/metadata/"+below)
	if err = classify(err); err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, nil // there are none
	}
	list, ok := secret.Data["keys"].([]any)
	if !ok {
		return nil, fmt.Errorf("%w: the list below %s is malformed", ErrUnavailable, below)
	}
	names := make([]string, 0, len(list))
	for _, v := range list {
		if name, ok := v.(string); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// fields converts a value to the form that the KV API expects.
func fields(v any) map[string]any {
	raw, err := json.Marshal(v)
	if err == nil {
		data := map[string]any{}
		if err = json.Unmarshal(raw, &data); err == nil {
			return data
		}
	}
	panic("secrets: cannot encode a value as a JSON object: " + err.Error())
}

// known returns a version of an engine's secret from the cache, or nil. The cache is never
// stale, because the content of a version with a key id never changes.
func (v *Vault) known(engineID string, number int, keyID string) *EngineKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range v.cache[engineID] {
		if keyID != "" && k.ID == keyID && k.Version == number {
			return k
		}
	}
	return nil
}

func (v *Vault) remember(engineID string, k *EngineKey) {
	if k.ID == "" {
		return // without an id, the cached version would never be removed
	}
	kept := *k
	v.mu.Lock()
	defer v.mu.Unlock()
	held := v.cache[engineID]
	if held == nil && len(v.cache) >= cacheEngines {
		for some := range v.cache { // an arbitrary one: the order of a map is random
			delete(v.cache, some)
			break
		}
	}
	if len(held) >= cacheVersions {
		held = held[1:]
	}
	v.cache[engineID] = append(slices.Clone(held), &kept)
}

// Forget empties the cache.
func (v *Vault) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.cache)
}

// forget removes the versions of an engine that are older than number from the cache; 0:
// all versions.
func (v *Vault) forget(engineID string, number int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(v.cache[engineID]), func(k *EngineKey) bool { return number == 0 || k.Version < number })
	if len(left) == 0 {
		delete(v.cache, engineID)
		return
	}
	v.cache[engineID] = left
}
