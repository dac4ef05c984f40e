// Package secrets stores the keys of engines and of providers in Vault's KV v2 engine, and
// defines the form of a key. No other store contains a key in plain text.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// Errors that callers distinguish.
var (
	// ErrNotFound: there is no such key, or this version of it was destroyed.
	ErrNotFound = errors.New("secrets: not found")
	// ErrDeleted: the key of an engine's snapshots was deleted or overwritten, and Vault can
	// bring it back.
	ErrDeleted = errors.New("secrets: deleted")
	// ErrConflict: another version was written since the named one.
	ErrConflict = errors.New("secrets: changed by another writer")
	// ErrUnavailable: Vault cannot be reached, is sealed, or is in standby. It is unknown
	// whether a change was made.
	ErrUnavailable = errors.New("secrets: vault unavailable")
	// ErrDenied: Vault refuses the service's token, or the token has no permission for the
	// request; always together with ErrUnavailable.
	ErrDenied = errors.New("secrets: vault denied the request")
)

const (
	// callTimeout limits the duration of one call to Vault, including retries.
	callTimeout = 5 * time.Second
	// cacheEngines limits the number of engines whose keys are cached: 100,000 need about
	// 40 MB. cacheVersions is the number of cached versions per engine: the current one,
	// and those of a rotation.
	cacheEngines  = 100_000
	cacheVersions = 3
)

// Vault reads and writes keys below one KV v2 mount.
type Vault struct {
	client *vault.Client
	kv     *vault.KVv2
	mount  string
	// changed wakes KeepToken after UseToken.
	changed chan struct{}

	mu sync.Mutex
	// cache is indexed by engine_id. golang-lru/v2 in its place would take 68 bytes more
	// per engine (266 instead of 198), and would not replace the code that decides which
	// versions of an engine are cached.
	cache map[string][]*EngineKey

	expires atomic.Int64 // of the token, as time.Time.UnixNano; 0: not known, or never
}

// New returns a Vault for the keys below mount (without slashes at its ends).
func New(client *vault.Client, mount string) *Vault {
	return &Vault{client: client, kv: client.KVv2(mount), mount: mount, changed: make(chan struct{}, 1), cache: map[string][]*EngineKey{}}
}

// Mount returns the mount of the keys, without slashes at its ends.
func (v *Vault) Mount() string { return v.mount }

// Ping reads the deployment's record with the service's own token. It thus reports whether
// Vault is available to this service. ErrDenied: the token has expired, was revoked, or may
// not read the record.
func (v *Vault) Ping(ctx context.Context) error {
	resp, err := v.client.Logical().ReadRawWithContext(ctx, v.mount+"/data/"+deploymentPath)
	if resp != nil {
		_ = resp.Body.Close()
	}
	var bad *vault.ResponseError
	if errors.As(err, &bad) && bad.StatusCode == http.StatusNotFound {
		if len(bad.Errors) == 0 {
			return nil // the record has not been written yet
		}
		return fmt.Errorf("%w: no KV engine is mounted at %s: %w", ErrUnavailable, v.mount, err)
	}
	return classify(err)
}

// classify wraps an error of the Vault client in one of this package's errors. Vault's
// responses never contain the secret that was sent.
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
			return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrDenied, err)
		case resp.StatusCode == http.StatusBadRequest && strings.Contains(err.Error(), "check-and-set"):
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
