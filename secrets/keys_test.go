package secrets

import (
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The forms of the keys: a prefix and 32 random bytes in base64url.
var (
	platformForm = regexp.MustCompile(`\Apk-sept-[A-Za-z0-9_-]{43}\z`)
	engineForm   = regexp.MustCompile(`\Ask-sept-[A-Za-z0-9_-]{43}\z`)
)

func TestNewKeys(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		platform, engine := NewPlatformKey(), NewEngineKey()
		if !platformForm.MatchString(platform) || !IsPlatformKey(platform) || isEngineKey(platform) {
			t.Fatalf("platform key %q", platform)
		}
		if !engineForm.MatchString(engine) || !isEngineKey(engine) || IsPlatformKey(engine) {
			t.Fatalf("engine key %q", engine)
		}
		if seen[platform[8:]] || seen[engine[8:]] {
			t.Fatal("a key was generated twice")
		}
		seen[platform[8:]], seen[engine[8:]] = true, true
	}
}

func TestKeyForm(t *testing.T) {
	good := NewPlatformKey()
	tail := strings.TrimPrefix(good, PlatformKeyPrefix)
	for name, bad := range map[string]string{
		"ErrEmpty": "", "ErrPrefixOnly": PlatformKeyPrefix, "ErrNoPrefix": tail, "ErrOtherPrefix": EngineKeyPrefix + tail,
		"ErrShort": good[:len(good)-1], "ErrLong": good + "A", "ErrUpperPrefix": strings.ToUpper(PlatformKeyPrefix) + tail,
		"ErrPadding": PlatformKeyPrefix + strings.Repeat("A", 42) + "=", "ErrStdAlphabet": PlatformKeyPrefix + strings.Repeat("A", 42) + "+",
		"ErrSpace": PlatformKeyPrefix + strings.Repeat("A", 42) + " ", "ErrLastBits": PlatformKeyPrefix + strings.Repeat("A", 42) + "B",
		"ErrLineBreaks": PlatformKeyPrefix + strings.Repeat("A", 40) + "\r\n\n", "ErrLeadingSpace": " " + good,
	} {
		t.Run(name, func(t *testing.T) {
			if IsPlatformKey(bad) {
				t.Fatalf("%q is accepted as a platform key", bad)
			}
		})
	}
}

// fuzzForm: only this form is accepted, and generated keys always are.
func fuzzForm(f *testing.F, is func(string) bool, form *regexp.Regexp, prefix string) {
	f.Add(prefix + strings.Repeat("A", 43))
	f.Add(prefix + strings.Repeat("A", 40) + "\n\n\n")
	f.Add(prefix + strings.Repeat("A", 42) + "=")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		ok := is(s)
		if ok && !form.MatchString(s) {
			t.Fatalf("%q is accepted as a key", s)
		}
		// The last of 43 characters has 4 significant bits; its two other bits are zero in
		// generated keys.
		if !ok && form.MatchString(s) && strings.ContainsAny(s[len(s)-1:], "AEIMQUYcgkosw048") {
			t.Fatalf("%q is not accepted as a key", s)
		}
	})
}

func FuzzIsPlatformKey(f *testing.F) { fuzzForm(f, IsPlatformKey, platformForm, PlatformKeyPrefix) }
func FuzzIsEngineKey(f *testing.F)   { fuzzForm(f, isEngineKey, engineForm, EngineKeyPrefix) }

func TestHash(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
		const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
		if diff := cmp.Diff(want, Hash("abc")); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
	t.Run("Property", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
			h := Hash(a)
			if raw, err := hex.DecodeString(h); err != nil || len(raw) != 32 || h != strings.ToLower(h) {
				t.Fatalf("hash of %q is %q", a, h)
			}
			if (h == Hash(b)) != (a == b) {
				t.Fatalf("hashes of %q and %q: %q, %q", a, b, h, Hash(b))
			}
		})
	})
}

func TestEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
		if Equal(a, b) != (a == b) || !Equal(a, a) || Equal(a, a+"x") || Equal(a+"\x00", a) {
			t.Fatalf("Equal returns %v for %q and %q", Equal(a, b), a, b)
		}
	})
}
