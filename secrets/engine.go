package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	vault "github.com/hashicorp/vault/api"
)

// Owner is whose an engine is. It stands in the engine's secret, beside the row
// in the registry: two stores with different fates (DESIGN section 7). The zero
// Owner is that of a secret which a version of the service wrote that knew no
// owners: unknown, not nobody.
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
	// ID names this very key: a number of a version does not, since a Vault that
	// was restored counts its versions anew. Empty in the secrets of a version of
	// the service that knew no ids.
	ID    string `json:"key_id,omitempty"`
	Owner Owner  `json:"owner,omitzero"`
	// Operation is the id of the operation that wrote this version.
	Operation string `json:"operation,omitempty"`
	// Version is its number in Vault.
	Version int `json:"-"`
}

func enginePath(engineID string) string { return "engines/" + engineID }

// PutEngineKey writes k as the version after current (0: the first one), and notes
// its number in k. ErrConflict: current is not the newest version.
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

// EngineKey reads one version of an engine's secret. With a keyID it is that very
// key, or ErrNotFound; without one (a row of a version of the service that knew
// none) it is whatever Vault holds, read anew each time. What is returned is
// shared, and not to be changed.
func (v *Vault) EngineKey(ctx context.Context, engineID string, number int, keyID string) (*EngineKey, error) {
	if number < 1 { // Vault takes 0 for the newest, which does not stay the same
		return nil, fmt.Errorf("%w: engine %s has no version %d", ErrNotFound, engineID, number)
	}
	if known := v.known(engineID, number, keyID); known != nil {
		return known, nil
	}
	k, err := v.readKey(ctx, engineID, number)
	if err != nil {
		return nil, err
	}
	if keyID != "" && k.ID != keyID {
		return nil, fmt.Errorf("%w: version %d of engine %s holds another key than the one that was asked for", ErrNotFound, number, engineID)
	}
	v.remember(engineID, k)
	return k, nil
}

// NewestKey reads the newest version of an engine's secret, past the cache.
// ErrNotFound: there is none, or it is destroyed.
func (v *Vault) NewestKey(ctx context.Context, engineID string) (*EngineKey, error) {
	return v.readKey(ctx, engineID, 0)
}

// Keys reads every version of an engine's secret that is not destroyed, the newest
// first.
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
			continue // destroyed meanwhile, or no key of ours
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// HasKey says whether Vault holds that very key, past the cache.
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
		return nil, fmt.Errorf("%w: version %d of engine %s holds no key", ErrNotFound, number, engineID)
	}
	k.Version = secret.VersionMetadata.Version
	return k, nil
}

// NewestVersion is the number of the last version that was ever written, 0 when
// there is none.
func (v *Vault) NewestVersion(ctx context.Context, engineID string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return v.newestOf(ctx, enginePath(engineID))
}

// DestroyVersionsBefore destroys, beyond recovery, every version of a key that
// is older than number.
func (v *Vault) DestroyVersionsBefore(ctx context.Context, engineID string, number int) error {
	if number <= 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	old := make([]int, 0, number-1)
	// Vault keeps the ten newest versions by default; older ones are gone.
	for n := max(1, number-10); n < number; n++ {
		old = append(old, n)
	}
	v.forget(engineID, number)
	return classify(v.kv.Destroy(ctx, enginePath(engineID), old))
}

// DeleteEngine removes every version of an engine's secret and their metadata.
func (v *Vault) DeleteEngine(ctx context.Context, engineID string) error {
	v.forget(engineID, 0)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(v.kv.DeleteMetadata(ctx, enginePath(engineID)))
}

// EngineIDs lists the engines that have a secret below this mount.
func (v *Vault) EngineIDs(ctx context.Context) ([]string, error) { return v.names(ctx, "engines") }

// names lists what is directly below a path of the mount.
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
		return nil, fmt.Errorf("%w: the list below %s has not the form of one", ErrUnavailable, below)
	}
	names := make([]string, 0, len(list))
	for _, v := range list {
		if name, ok := v.(string); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// fields is a value as the KV API takes it.
func fields(v any) map[string]any {
	raw, err := json.Marshal(v)
	if err == nil {
		data := map[string]any{}
		if err = json.Unmarshal(raw, &data); err == nil {
			return data
		}
	}
	panic("secrets: what is stored always marshals to an object: " + err.Error())
}

// known is a version of an engine's secret that is held in memory, or nil. What was
// written as a version under an id never changes, so it is never stale.
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
		return // nothing names it indefinitely
	}
	kept := *k
	v.mu.Lock()
	defer v.mu.Unlock()
	held := v.cache[engineID]
	if held == nil && len(v.cache) >= cacheEngines {
		for some := range v.cache { // any one: the map's order is random
			delete(v.cache, some)
			break
		}
	}
	if len(held) >= cacheVersions {
		held = held[1:]
	}
	v.cache[engineID] = append(slices.Clone(held), &kept)
}

// Forget drops all keys in memory: each is read anew.
func (v *Vault) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.cache)
}

// forget drops the versions of an engine in memory that are older than number; 0:
// all.
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
