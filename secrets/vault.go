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
	// cacheEngines bounds the engines whose keys are held in memory: 100,000 of them
	// are about 40 MB. cacheVersions of each are held: the one of now, and those of a
	// rotation.
	cacheEngines  = 100_000
	cacheVersions = 3
)

// Vault reads and writes keys below one KV v2 mount.
type Vault struct {
	client *vault.Client
	kv     *vault.KVv2
	mount  string

	mu    sync.Mutex
	cache map[string][]*EngineKey // by engine_id
}

// New returns the keys below mount (without slashes at its ends).
func New(client *vault.Client, mount string) *Vault {
	return &Vault{client: client, kv: client.KVv2(mount), mount: mount, cache: map[string][]*EngineKey{}}
}

// Mount is where the keys are, without slashes at its ends.
func (v *Vault) Mount() string { return v.mount }

// EnvPath is where the provider keys are, as a path for the KV API.
const EnvPath = "engine-env"

// EnvTemplatePath is the provider keys' path as a Nomad template reads it.
func (v *Vault) EnvTemplatePath() string { return v.mount + "/data/" + EnvPath }

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
