package secrets

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// Prefixes of the two kinds of key that the service generates.
const (
	PlatformKeyPrefix = "pk-sept-"
	EngineKeyPrefix   = "sk-sept-"
)

// keyBytes is the length of the random part of a key; it becomes 43 characters of
// base64url.
const keyBytes = 32

// NewPlatformKey returns a new platform key.
func NewPlatformKey() string { return newKey(PlatformKeyPrefix) }

// NewEngineKey returns a new engine key.
func NewEngineKey() string { return newKey(EngineKeyPrefix) }

// NewKeyID returns a unique id for a key.
func NewKeyID() string { return strings.ToLower(rand.Text()) }

func newKey(prefix string) string {
	var b [keyBytes]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// IsPlatformKey reports whether s has the form of a platform key.
func IsPlatformKey(s string) bool { return hasForm(s, PlatformKeyPrefix) }

// isEngineKey reports whether s has the form of an engine key.
func isEngineKey(s string) bool { return hasForm(s, EngineKeyPrefix) }

func hasForm(s, prefix string) bool {
	tail, ok := strings.CutPrefix(s, prefix)
	if !ok || len(tail) != base64.RawURLEncoding.EncodedLen(keyBytes) {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(tail)
	return err == nil && len(b) == keyBytes // the decoder skips line breaks
}

// Hash returns the lower-case hex SHA-256 of a key. The service stores only the hash of a
// platform key, and an engine gets only the hash of its own key.
func Hash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// Checksum returns the lower-case hex SHA-256 of a key's hash. It shows which key a process
// was started with, and reveals neither the key nor what an engine compares it with.
func Checksum(key string) string { return Hash(Hash(key)) }

// Equal compares two secrets in constant time.
func Equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
