// Package adminkeys is the admin's keys: their names and roles, and the file that lists
// them.
package adminkeys

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

// MinLength is the minimum length of an admin key, in characters (docs/configuration.md).
const MinLength = 16

// DefaultName is the name of the key that ORCH_ADMIN_KEY or ORCH_ADMIN_KEY_FILE contains.
const DefaultName = "admin"

// Role is what the holder of a key may do.
type Role string

// Roles.
const (
	Admin    Role = "admin"     // every call
	ReadOnly Role = "read-only" // calls that only read (GET)
)

// Key is an admin key without its secret.
type Key struct {
	Name string
	Role Role
	sum  [sha256.Size]byte
}

// Actor returns the actor of the audit log for changes with this key: "admin", or "admin:"
// and the key's name. No slug of a product has a colon.
func (k Key) Actor() string {
	if k.Name == DefaultName {
		return DefaultName
	}
	return DefaultName + ":" + k.Name
}

// New returns a key of role Admin with the default name.
func New(secret string) Key {
	return Key{Name: DefaultName, Role: Admin, sum: sha256.Sum256([]byte(secret))}
}

// Set is keys that are valid at the same time. The zero Set contains none.
type Set struct{ keys []Key }

// NewSet returns a Set. Keys may have one name if they have one role, as while one replaces
// the other. It is an error if two keys have the same secret.
func NewSet(keys ...Key) (Set, error) {
	roles, sums := map[string]Role{}, map[[sha256.Size]byte]string{}
	for _, k := range keys {
		if role, known := roles[k.Name]; known && role != k.Role {
			return Set{}, fmt.Errorf("the name %s has keys of two roles", k.Name)
		}
		if name, known := sums[k.sum]; known {
			return Set{}, fmt.Errorf("the keys of %s and %s are the same", name, k.Name)
		}
		roles[k.Name], sums[k.sum] = k.Role, k.Name
	}
	return Set{keys}, nil
}

// Find returns the key with a secret. How long it takes depends neither on the secret nor
// on which key it is.
func (s Set) Find(secret string) (Key, bool) {
	sum := sha256.Sum256([]byte(secret))
	found := -1
	for i := range s.keys {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(sum[:], s.keys[i].sum[:]), i, found)
	}
	if found < 0 {
		return Key{}, false
	}
	return s.keys[found], true
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// hashPrefix precedes the SHA-256 of a key in place of the key.
const hashPrefix = "sha256:"

// Read reads a file of keys. It has a line for each key: its name, its role, and the key or
// "sha256:" with the key's SHA-256 in hexadecimal digits, separated by blanks. Empty lines
// and lines that begin with # are skipped. A file without keys is an error. No error
// contains a key.
func Read(file string) ([]Key, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) { // the path may be a key in the wrong variable
			err = at.Err
		}
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	var keys []Key
	number := 0
	for line := range strings.Lines(string(b)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("contains no key")
	}
	_, err = NewSet(keys...)
	return keys, err
}

// parse reads a line. A key may contain blanks.
func parse(line string) (Key, error) {
	name, rest := cut(line)
	role, secret := cut(rest)
	k := Key{Name: name, Role: Role(role)}
	switch {
	case secret == "":
		return k, errors.New("must contain a name, a role and a key, separated by blanks")
	case !namePattern.MatchString(name):
		return k, errors.New("the name must have 1 to 64 letters, digits or characters . _ @ -, and begin with a letter or a digit")
	case k.Role != Admin && k.Role != ReadOnly:
		return k, fmt.Errorf("the role must be %s or %s", Admin, ReadOnly)
	}
	if hash, ok := strings.CutPrefix(secret, hashPrefix); ok {
		sum, err := hex.DecodeString(hash)
		if err != nil || len(sum) != sha256.Size {
			return k, errors.New(hashPrefix + " must be followed by the 64 hexadecimal digits of a SHA-256")
		}
		k.sum = [sha256.Size]byte(sum)
		return k, nil
	}
	if utf8.RuneCountInString(secret) < MinLength {
		return k, fmt.Errorf("the key must have at least %d characters", MinLength)
	}
	k.sum = sha256.Sum256([]byte(secret))
	return k, nil
}

// cut returns the text before the first blanks, and that after them.
func cut(line string) (first, rest string) {
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, ""
	}
	return line[:i], strings.TrimLeft(line[i:], " \t")
}
