package registry

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
)

const (
	// someProduct has the length of product ids.
	someProduct = "abcdefghijklmnopqrstuvwxyz"
	// maxConsulKey is the longest key that tools around Consul support.
	maxConsulKey = 512
)

var rowNamePattern = regexp.MustCompile(`^[0-9a-f]{2}/[^/]+/[A-Za-z0-9_-]*$`)

// checkRowName fails unless a user_id maps to one key and the key maps back to it.
func checkRowName(t interface {
	Helper()
	Fatalf(string, ...any)
}, user string) {
	t.Helper()
	name := rowName(someProduct, user)
	if !rowNamePattern.MatchString(name) {
		t.Fatalf("the row name of %q is %q: not a shard 00..ff, the product and one segment", user, name)
	}
	product, got, err := parseRowName(name)
	if err != nil || product != someProduct || got != user {
		t.Fatalf("row name %q of user %q is parsed as product %q, user %q, %v", name, user, product, got, err)
	}
	s := New(nil, "orch/")
	if key := s.engineKey(someProduct, user); len(user) <= engine.MaxUserIDBytes && len(key) > maxConsulKey {
		t.Fatalf("the key of a user_id of %d bytes is %d bytes long", len(user), len(key))
	}
	if change := s.changeKey(someProduct, user); !regexp.MustCompile(`^orch/changes/[0-9a-f]{2}$`).MatchString(change) {
		t.Fatalf("the change key of %q is %q", user, change)
	}
}

func TestRowName(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { checkRowName(t, rapid.String().Draw(t, "user")) })
	})
	t.Run("Longest", func(t *testing.T) {
		for _, user := range []string{strings.Repeat("x", engine.MaxUserIDBytes), strings.Repeat("\U0001F600", engine.MaxUserIDBytes/4)} {
			checkRowName(t, user)
		}
	})
	t.Run("NoTwoUsersShareARow", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
			if (a == b) != (rowName(someProduct, a) == rowName(someProduct, b)) {
				t.Fatalf("users %q and %q: row names %q and %q", a, b, rowName(someProduct, a), rowName(someProduct, b))
			}
		})
	})
	t.Run("NoTwoProductsShareARow", func(t *testing.T) {
		if rowName("a", "user") == rowName("b", "user") {
			t.Fatal("one row for a user of two products")
		}
	})
	t.Run("ShardsAreAllUsed", func(t *testing.T) {
		seen := map[string]bool{}
		for i := range 10_000 {
			seen[shard(someProduct, string(rune(i+0x10000)))] = true
		}
		if len(seen) != 256 {
			t.Fatalf("10,000 users are in %d of 256 shards", len(seen))
		}
	})
	good := rowName(someProduct, "user-1")
	for name, bad := range map[string]string{
		"ErrParts":       "00/only-two",
		"ErrFourParts":   good + "/more",
		"ErrEmpty":       "",
		"ErrBase64":      good[:len(good)-1] + "!",
		"ErrOtherShard":  map[bool]string{true: "00", false: "01"}[good[:2] != "00"] + good[2:],
		"ErrOtherUser":   good[:3] + someProduct + "/" + "dXNlci0y",
		"ErrNotExactly":  nonCanonical(t),
		"ErrUnusualLine": good[:len(good)-2] + "\n" + good[len(good)-2:],
	} {
		t.Run(name, func(t *testing.T) {
			if product, user, err := parseRowName(bad); err == nil {
				t.Fatalf("row name %q is accepted as user %q of %q", bad, user, product)
			}
		})
	}
}

// nonCanonical returns a row name whose last character has unused bits: a second key for
// one user.
func nonCanonical(t *testing.T) string {
	t.Helper()
	name := rowName(someProduct, "a") // "YQ"
	if !strings.HasSuffix(name, "/YQ") {
		t.Fatalf("row name of \"a\" is %q", name)
	}
	return strings.TrimSuffix(name, "YQ") + "YR"
}

func FuzzRowName(f *testing.F) {
	for _, user := range []string{"", "a", "user@example.com", "auth0|123", "a/b c", "provision", "..", "\U0001F600", "\xff\xfe", strings.Repeat("ü", 128)} {
		f.Add(user)
	}
	f.Fuzz(func(t *testing.T, user string) { checkRowName(t, user) })
}

// FuzzParseRowName: what is accepted is exactly the name of that row.
func FuzzParseRowName(f *testing.F) {
	f.Add(rowName(someProduct, "user-1"))
	f.Add("00/product/YR")
	f.Add("//")
	f.Fuzz(func(t *testing.T, name string) {
		product, user, err := parseRowName(name)
		if err == nil && rowName(product, user) != name {
			t.Fatalf("%q is accepted as %q", name, rowName(product, user))
		}
	})
}
