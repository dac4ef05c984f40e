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

	mu sync.Mutex
	// cache is by engine_id. golang-lru/v2 in its place takes 68 bytes more for each
	// (266 instead of 198), and most of what it would replace, which of an engine's
	// versions are held and forgotten, would stay.
	cache map[string][]*EngineKey
}

// New returns the keys below mount (without slashes at its ends).
func New(client *vault.Client, mount string) *Vault {
	return &Vault{client: client, kv: client.KVv2(mount), mount: mount, cache: map[string][]*EngineKey{}}
}

// Mount is where the keys are, without slashes at its ends.
func (v *Vault) Mount() string { return v.mount }

// Ping reads the deployment's record, with the service's own token: so it says whether
// Vault serves, and serves us. ErrDenied: the token ended, was revoked, or may not
// read it.
func (v *Vault) Ping(ctx context.Context) error {
	resp, err := v.client.Logical().ReadRawWithContext(ctx, v.mount+"/data/"+deploymentPath)
	if resp != nil {
		_ = resp.Body.Close()
	}
	var bad *vault.ResponseError
	if errors.As(err, &bad) && bad.StatusCode == http.StatusNotFound {
		if len(bad.Errors) == 0 {
			return nil // the record is not written yet
		}
		return fmt.Errorf("%w: no KV engine is mounted at %s: %w", ErrUnavailable, v.mount, err)
	}
	return classify(err)
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
