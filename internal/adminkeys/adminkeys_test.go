package adminkeys

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	first  = "the-first-key-of-16"
	second = "the second key, with blanks"
)

func hashOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hashPrefix + hex.EncodeToString(sum[:])
}

func written(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestRead: every key of a file is found with its name and role, and nothing else is.
func TestRead(t *testing.T) {
	third := "only its hash is in the file"
	keys, err := Read(written(t, "# operators\n\nalice admin "+first+"\r\n\talice\tadmin\t"+hashOf(third)+"\n  dashboard  read-only   "+second+"  \nadmin admin "+hashPrefix+strings.ToUpper(hashOf("another")[len(hashPrefix):])+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(append(keys, New("the key of ORCH_ADMIN_KEY"))...)
	if err != nil {
		t.Fatal(err)
	}
	for secret, want := range map[string]struct {
		actor string
		role  Role
	}{
		first: {"admin:alice", Admin}, third: {"admin:alice", Admin}, second: {"admin:dashboard", ReadOnly}, "the key of ORCH_ADMIN_KEY": {"admin", Admin},
	} {
		got, found := set.Find(secret)
		if !found || got.Actor() != want.actor || got.Role != want.role {
			t.Errorf("%q is %+v, %v; want %+v", secret, got, found, want)
		}
	}
	for _, secret := range []string{"", " ", first + " ", strings.ToUpper(first), "alice", hashOf(first), hashOf(third)} {
		if got, found := set.Find(secret); found {
			t.Errorf("%q is a key: %+v", secret, got)
		}
	}
	if _, found := (Set{}).Find(""); found {
		t.Error("an empty set has a key")
	}
}

// TestReadErrors: an error names the line, and contains no key.
func TestReadErrors(t *testing.T) {
	for name, tc := range map[string]struct{ text, says string }{
		"empty":            {"# nothing\n", "no key"},
		"no key":           {"alice admin\n", "line 1"},
		"no role":          {"\nalice " + first + "\n", "line 2"},
		"a role":           {"alice root " + first + "\n", "admin or read-only"},
		"a name":           {"al:ice admin " + first + "\n", "name"},
		"short":            {"alice admin fifteen-letters\n", "at least 16"},
		"not a hash":       {"alice admin sha256:0123456789abcdef\n", "64 hexadecimal"},
		"two roles":        {"alice admin " + first + "\nalice read-only " + second + "\n", "two roles"},
		"the same key":     {"alice admin " + first + "\nbob read-only " + first + "\n", "alice and bob"},
		"the key and hash": {"alice admin " + first + "\nbob admin " + hashOf(first) + "\n", "alice and bob"},
	} {
		_, err := Read(written(t, tc.text))
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), first) || strings.Contains(err.Error(), "fifteen-letters") {
			t.Errorf("%s: the error contains the key: %v", name, err)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file is no error")
	}
}
