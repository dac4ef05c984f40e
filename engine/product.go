package engine

import (
	"errors"
	"regexp"
	"slices"
	"time"
)

// Product is a tenant: it owns users and holds one platform key, of which only
// the SHA-256 is kept.
type Product struct {
	ProductID   string    `json:"product_id"`
	Slug        string    `json:"slug"`
	DisplayName string    `json:"display_name"`
	Policy      Policy    `json:"policy"`
	CreatedAt   time.Time `json:"created_at"`
	// PlatformKeyHash is the lower-case hex SHA-256 of the platform key.
	PlatformKeyHash string `json:"platform_key_hash"`
	// RetiredKeys are earlier platform keys that still work for a while.
	RetiredKeys []RetiredKey `json:"retired_keys,omitempty"`
	// Revision counts the changes of the row: of two copies the higher one is the
	// later.
	Revision int `json:"revision,omitempty"`

	// Index is the version of the product in its store.
	Index uint64 `json:"-"`
	// Stored is what the store keeps about the product as it was read; nothing else uses it.
	Stored any `json:"-"`
}

// WarmProduct owns the rows of warm engines: engines that run and wait for a
// user. It is no product: nobody has its key, it has no quota, and no product_id
// is as short.
const WarmProduct = "warm"

// RetiredKey is a platform key that was rotated with an overlap.
type RetiredKey struct {
	Hash  string    `json:"hash"`
	Until time.Time `json:"until"`
}

// Accepts says whether a platform key is the product's, now.
func (p *Product) Accepts(keyHash string, now time.Time) bool {
	if keyHash == p.PlatformKeyHash {
		return true
	}
	return slices.ContainsFunc(p.RetiredKeys, func(k RetiredKey) bool { return k.Hash == keyHash && now.Before(k.Until) })
}

var slugPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// CheckSlug says whether a slug has the form of SPEC section 3.
func CheckSlug(slug string) error {
	if !slugPattern.MatchString(slug) {
		return errors.New("slug must be 1 to 40 characters of a-z, 0-9 and '-', and start with a letter or digit")
	}
	return nil
}
