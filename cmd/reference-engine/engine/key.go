package engine

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// keyHeader is the header with the engine's key in plain text. The engine itself only knows
// the hash.
const keyHeader = "X-Engine-Key"

// keySource is the source of the hash. If a file is named, it is the only source: falling
// back to the variable could accept a retired key again.
type keySource struct {
	file  string
	value string
}

// read returns the hash that the source contains now.
func (s keySource) read() ([sha256.Size]byte, error) {
	if s.file == "" {
		h, err := parseHash(s.value)
		if err != nil {
			return h, fmt.Errorf("ENGINE_KEY_HASH: %w", err)
		}
		return h, nil
	}
	var h [sha256.Size]byte
	f, err := os.Open(s.file)
	if err != nil {
		return h, fmt.Errorf("ENGINE_KEY_HASH_FILE: %w", err)
	}
	defer f.Close()
	// The file contains a hash and a line end; anything longer is another file.
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return h, fmt.Errorf("ENGINE_KEY_HASH_FILE: %w", err)
	}
	if h, err = parseHash(strings.TrimSpace(string(b))); err != nil {
		return h, fmt.Errorf("ENGINE_KEY_HASH_FILE %s: %w", s.file, err)
	}
	return h, nil
}

// parseHash accepts exactly 64 lower-case hex digits. The error does not contain the text,
// because it may be the key itself.
func parseHash(s string) (h [sha256.Size]byte, err error) {
	if s == "" {
		return h, errors.New("is empty, want 64 lower-case hex digits")
	}
	if len(s) != hex.EncodedLen(len(h)) || strings.ToLower(s) != s {
		return h, fmt.Errorf("has %d characters that are not a hash, want 64 lower-case hex digits", len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, errors.New("is not hex, want 64 lower-case hex digits")
	}
	return h, nil
}

// keyring contains the valid hash.
type keyring struct {
	source keySource
	hash   atomic.Pointer[[sha256.Size]byte]

	both   time.Duration // how long the previous hash stays valid after a reload
	before atomic.Pointer[retiredHash]
}

type retiredHash struct {
	hash  [sha256.Size]byte
	until time.Time
}

// newKeyring returns an error unless the source contains a valid hash, because an engine
// must not start that admits nobody or everybody.
func newKeyring(source keySource) (*keyring, error) {
	k := &keyring{source: source}
	return k, k.reload()
}

// reload reads the source again. After an error the old hash stays valid.
func (k *keyring) reload() error {
	h, err := k.source.read()
	if err != nil {
		return err
	}
	if old := k.hash.Swap(&h); old != nil && k.both > 0 {
		k.before.Store(&retiredHash{*old, time.Now().Add(k.both)})
	}
	return nil
}

// admits reports whether the request contains the key exactly once: with two headers it
// would be unclear which one counts.
func (k *keyring) admits(r *http.Request) bool {
	keys := r.Header.Values(keyHeader)
	if len(keys) != 1 || keys[0] == "" {
		return false
	}
	got := sha256.Sum256([]byte(keys[0]))
	if old := k.before.Load(); old != nil && time.Now().Before(old.until) && subtle.ConstantTimeCompare(got[:], old.hash[:]) == 1 {
		return true
	}
	return subtle.ConstantTimeCompare(got[:], k.hash.Load()[:]) == 1
}
