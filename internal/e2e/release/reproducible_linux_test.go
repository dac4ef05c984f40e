package release

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReproducible builds the commit of this checkout in two clones that differ in path, cache,
// home, time zone, and language. All artifacts are equal.
//
// The caches have what the commit requires, compiled only once, because compiling that takes
// minutes; what is in the commit itself is compiled twice. The Go toolchain, the architecture
// and the versions of programs on this machine are the same in both. Changes that are not
// committed are not in the clones.
func TestReproducible(t *testing.T) {
	need(t, "git")
	t.Parallel()
	root, dir := repository(t), t.TempDir()
	artifacts := func(name string, environment ...string) map[string]string {
		checkout := filepath.Join(dir, name)
		output(t, "git", "clone", "-q", "--no-local", "--depth=1", "file://"+root, checkout)
		cache := filepath.Join(dir, name+"-cache")
		seed(t, root, cache)
		out := filepath.Join(dir, name+"-dist")
		build(t, checkout, out, nil, append(environment, "GOCACHE="+cache)...)
		return sumsOf(t, out)
	}
	modules := output(t, "go", "env", "GOMODCACHE")
	first := artifacts("a", "TZ=UTC", "LC_ALL=C")
	second := artifacts("some/longer/path/of-b", "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "GOMODCACHE="+modules, "HOME="+t.TempDir(),
		"GOFLAGS=-buildvcs=false", "SOURCE_DATE_EPOCH=1", "GOAMD64=v3")
	if len(first) < 8 {
		t.Errorf("only %d artifacts", len(first))
	}
	for name, sum := range first {
		if second[name] != sum {
			t.Errorf("%s differs", name)
		}
	}
	if len(second) != len(first) {
		t.Errorf("%d artifacts, then %d", len(first), len(second))
	}
}

// sumsOf reads all files of a directory.
func sumsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sums[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(text))
	}
	return sums
}

// seed makes a cache of Go's that has the packages of other modules, and none of this one. It
// links files of the machine's cache: a package's build id begins with 15 bytes of the name of
// its entry, which names its output. If Go changes that, the builds only take longer, but the
// test fails at once, because nothing says what was compiled then.
func seed(t *testing.T, root, cache string) {
	t.Helper()
	from := output(t, "go", "env", "GOCACHE")
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-export", "-trimpath", "-buildvcs=false",
		"-f", `{{if not (and .Module .Module.Main)}}{{.BuildID}}{{end}}`, "./cmd/orch", "./cmd/orch-quota", "./cmd/orch-brain", "./cmd/orch-dev", "./cmd/reference-engine")
	list.Dir = root
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOTOOLCHAIN="+toolchain(t, root))
	ids, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := 0
	for id := range strings.FieldsSeq(string(ids)) {
		action, err := base64.URLEncoding.DecodeString(strings.Split(id, "/")[0])
		if err != nil {
			t.Fatal(err)
		}
		prefix := hex.EncodeToString(action)
		for _, entry := range glob(filepath.Join(from, prefix[:2], prefix+"*-a")) {
			text, err := os.ReadFile(entry)
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(string(text)) // "v1", the action, the output, its size, a time
			if len(fields) != 5 {
				t.Fatalf("%s: %s", entry, text)
			}
			link(t, from, cache, filepath.Base(entry))
			link(t, from, cache, fields[2]+"-d")
			linked++
		}
	}
	if linked < 300 {
		t.Fatalf("only %d packages of other modules are in the cache", linked)
	}
}

func glob(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// link makes a file of one cache one of the other, too.
func link(t *testing.T, from, to, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(to, name[:2]), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(from, name[:2], name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, name[:2], name), text, 0o644); err != nil {
		t.Fatal(err)
	}
}
