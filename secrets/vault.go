// Package secrets keeps the keys of engines and of providers in Vault's KV v2
// engine, and knows the form of a key. No other place holds a key in plain text.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// Errors that callers branch on.
var (
	// ErrNotFound: no such key, or that version of it is destroyed.
	ErrNotFound = errors.New("secrets: not found")
	// ErrConflict: another version was written since the one that was named.
	ErrConflict = errors.New("secrets: changed by somebody else")
	// ErrUnavailable: Vault cannot be reached, is sealed or is in standby;
	// whether a change was made is not known.
	ErrUnavailable = errors.New("secrets: vault unavailable")
	// ErrDenied: the service's token does not allow it.
	ErrDenied = errors.New("secrets: vault denied it")
)

const (
	// callTimeout bounds one call to Vault, retries included.
	callTimeout = 5 * time.Second
	// cacheEntries bounds the keys held in memory: 100,000 of them are about
	// 15 MB.
	cacheEntries = 100_000
	field        = "api_key"
)

// Vault reads and writes keys below one KV v2 mount.
type Vault struct {
	client *vault.Client
	kv     *vault.KVv2
	mount  string

	mu    sync.Mutex
	cache map[version]string
}

// version names one key for ever: what a version holds never changes, so a
// cached one is never stale.
type version struct {
	engineID string
	number   int
}

// New returns the keys below mount (without slashes at its ends).
func New(client *vault.Client, mount string) *Vault {
	return &Vault{client: client, kv: client.KVv2(mount), mount: mount, cache: map[version]string{}}
}

func enginePath(engineID string) string { return "engines/" + engineID }

// EnvPath is where the provider keys are, as a path for the KV API.
const EnvPath = "engine-env"

// EnvTemplatePath is the provider keys' path as a Nomad template reads it.
func (v *Vault) EnvTemplatePath() string { return v.mount + "/data/" + EnvPath }

// PutEngineKey writes a key as the version after current (0: the first one) and
// returns its number. ErrConflict: current is not the newest version.
func (v *Vault) PutEngineKey(ctx context.Context, engineID, key string, current int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.Put(ctx, enginePath(engineID), map[string]any{field: key}, vault.WithCheckAndSet(current))
	if err != nil {
		return 0, classify(err)
	}
	number := secret.VersionMetadata.Version
	v.remember(version{engineID, number}, key)
	return number, nil
}

// EngineKey reads one version of a key. ErrNotFound: there is none.
func (v *Vault) EngineKey(ctx context.Context, engineID string, number int) (string, error) {
	if number < 1 { // Vault takes 0 for the newest, which does not stay the same
		return "", fmt.Errorf("%w: engine %s has no version %d", ErrNotFound, engineID, number)
	}
	at := version{engineID, number}
	v.mu.Lock()
	key, ok := v.cache[at]
	v.mu.Unlock()
	if ok {
		return key, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.kv.GetVersion(ctx, enginePath(engineID), number)
	if err != nil {
		return "", classify(err)
	}
	key, ok = secret.Data[field].(string)
	if !ok || !IsEngineKey(key) {
		return "", fmt.Errorf("%w: version %d of engine %s holds no key", ErrNotFound, number, engineID)
	}
	v.remember(at, key)
	return key, nil
}

// NewestVersion is the number of the last version that was ever written, 0 when
// there is none.
func (v *Vault) NewestVersion(ctx context.Context, engineID string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	meta, err := v.kv.GetMetadata(ctx, enginePath(engineID))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return meta.CurrentVersion, nil
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
		v.forget(version{engineID, n})
	}
	return classify(v.kv.Destroy(ctx, enginePath(engineID), old))
}

// DeleteEngine removes every version of an engine's key and their metadata.
func (v *Vault) DeleteEngine(ctx context.Context, engineID string) error {
	v.mu.Lock()
	for at := range v.cache {
		if at.engineID == engineID {
			delete(v.cache, at)
		}
	}
	v.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(v.kv.DeleteMetadata(ctx, enginePath(engineID)))
}

// PutEnv writes the provider keys that engines get, unless they are the ones
// that Vault holds, and returns their version and whether it is a new one.
func (v *Vault) PutEnv(ctx context.Context, env map[string]string) (version int, written bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	data := make(map[string]any, len(env))
	for name, value := range env {
		data[name] = value
	}
	for {
		held, err := v.env(ctx)
		if err != nil {
			return 0, false, err
		}
		current := 0
		if held.VersionMetadata != nil {
			current = held.VersionMetadata.Version
		}
		if current > 0 && sameEnv(held.Data, data) {
			return current, false, nil
		}
		secret, err := v.kv.Put(ctx, EnvPath, data, vault.WithCheckAndSet(current))
		if err = classify(err); err == nil {
			return secret.VersionMetadata.Version, true, nil
		}
		if !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return 0, false, err
		}
		// Another replica wrote at the same time: the same keys, as a rule.
	}
}

// EnvVersion is the version of the provider keys that Vault holds, 0 when it
// holds none.
func (v *Vault) EnvVersion(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held, err := v.env(ctx)
	if err != nil || held.VersionMetadata == nil {
		return 0, err
	}
	return held.VersionMetadata.Version, nil
}

// env reads the provider keys; an empty secret when there are none. A deleted
// one still tells its version.
func (v *Vault) env(ctx context.Context) (*vault.KVSecret, error) {
	held, err := v.kv.Get(ctx, EnvPath)
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return &vault.KVSecret{}, nil
	}
	return held, err
}

// EngineIDs lists the engines that have a key below this mount, those of other
// deployments included.
func (v *Vault) EngineIDs(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := v.client.Logical().ListWithContext(ctx, v.mount+"/metadata/engines")
	if err = classify(err); err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, nil // there are none
	}
	list, ok := secret.Data["keys"].([]any)
	if !ok {
		return nil, fmt.Errorf("%w: the list of keys has not the form of one", ErrUnavailable)
	}
	ids := make([]string, 0, len(list))
	for _, v := range list {
		if id, ok := v.(string); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func sameEnv(a, b map[string]any) bool {
	if len(a) != len(b) {
		return false
	}
	for name, value := range a {
		if other, ok := b[name]; !ok || other != value {
			return false
		}
	}
	return true
}

// Ping asks Vault whether it is initialised, unsealed and active.
func (v *Vault) Ping(ctx context.Context) error {
	health, err := v.client.Sys().HealthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !health.Initialized || health.Sealed {
		return fmt.Errorf("%w: sealed", ErrUnavailable)
	}
	return nil
}

func (v *Vault) remember(at version, key string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.cache) >= cacheEntries {
		for some := range v.cache { // any one: the map's order is random
			delete(v.cache, some)
			break
		}
	}
	v.cache[at] = key
}

func (v *Vault) forget(at version) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.cache, at)
}

// classify gives an error of the Vault client its place among ours. What Vault
// answers never holds the secret that was sent.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, vault.ErrSecretNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	var resp *vault.ResponseError
	if errors.As(err, &resp) {
		switch {
		case resp.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		case resp.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %w", ErrDenied, err)
		case resp.StatusCode == http.StatusBadRequest && strings.Contains(err.Error(), "check-and-set"):
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
