package engine

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Product is a tenant: it has users and one platform key, of which only the SHA-256 is
// stored.
type Product struct {
	ProductID   string    `json:"product_id"`
	Slug        string    `json:"slug"`
	DisplayName string    `json:"display_name"`
	Policy      Policy    `json:"policy"`
	CreatedAt   time.Time `json:"created_at"`
	// PlatformKeyHash is the lower-case hex SHA-256 of the platform key.
	PlatformKeyHash string `json:"platform_key_hash"`
	// RetiredKeys are earlier platform keys that are still valid for a while.
	RetiredKeys []RetiredKey `json:"retired_keys,omitempty"`
	// Revision counts the changes of the row: of two copies, the one with the higher
	// revision is newer.
	Revision int `json:"revision,omitempty"`

	// Index is the version of the product in its store.
	Index uint64 `json:"-"`
	// Stored is what the store keeps about the product as it was read. Nothing else uses
	// it.
	Stored any `json:"-"`
}

// WarmProduct owns the rows of warm engines: engines that run without a user. It is not a
// product: it has no key and no quota, and no product_id is that short.
const WarmProduct = "warm"

// RetiredKey is the previous platform key after a rotation with an overlap.
type RetiredKey struct {
	Hash  string    `json:"hash"`
	Until time.Time `json:"until"`
}

// Accepts reports whether a platform key is a valid key of the product now.
func (p *Product) Accepts(keyHash string, now time.Time) bool {
	if keyHash == p.PlatformKeyHash {
		return true
	}
	return slices.ContainsFunc(p.RetiredKeys, func(k RetiredKey) bool { return k.Hash == keyHash && now.Before(k.Until) })
}

// maxDisplayName limits a product's display name, in bytes.
const maxDisplayName = 200

// CheckDisplayName returns an error unless a display name has 1 to 200 bytes and no control
// characters.
func CheckDisplayName(name string) error {
	if name == "" || len(name) > maxDisplayName || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("display_name must have 1 to %d bytes and no control characters", maxDisplayName)
	}
	return nil
}

var slugPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// CheckSlug returns an error unless a slug has the form in docs/openapi.yaml.
func CheckSlug(slug string) error {
	if !slugPattern.MatchString(slug) {
		return errors.New("slug must be 1 to 40 characters of a-z, 0-9 and '-', and start with a letter or digit")
	}
	return nil
}
