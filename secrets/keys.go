package secrets

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// Prefixes of the two kinds of key that the service makes.
const (
	PlatformKeyPrefix = "pk-sept-"
	EngineKeyPrefix   = "sk-sept-"
)

// keyBytes of randomness are 43 characters of base64url.
const keyBytes = 32

// NewPlatformKey returns a fresh platform key.
func NewPlatformKey() string { return newKey(PlatformKeyPrefix) }

// NewEngineKey returns a fresh engine key.
func NewEngineKey() string { return newKey(EngineKeyPrefix) }

// NewKeyID returns a name for one key that no other key has.
func NewKeyID() string { return strings.ToLower(rand.Text()) }

func newKey(prefix string) string {
	var b [keyBytes]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// IsPlatformKey says whether s has the form of a platform key.
func IsPlatformKey(s string) bool { return hasForm(s, PlatformKeyPrefix) }

// isEngineKey says whether s has the form of an engine key.
func isEngineKey(s string) bool { return hasForm(s, EngineKeyPrefix) }

func hasForm(s, prefix string) bool {
	tail, ok := strings.CutPrefix(s, prefix)
	if !ok || len(tail) != base64.RawURLEncoding.EncodedLen(keyBytes) {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(tail)
	return err == nil && len(b) == keyBytes // the decoder skips line breaks
}

// Hash is the lower-case hex SHA-256 of a key: what is kept of a platform key
// and what an engine gets of its own.
func Hash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// Equal compares two secrets in a time that depends on neither.
func Equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
