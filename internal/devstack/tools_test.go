package devstack

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/hcl"
	"golang.org/x/mod/modfile"

	"github.com/septemberai/orch/deploy"
)

// The versions in the table, after which the binaries in the cache are named, are those of
// the modules from which they are built.
func TestPinnedVersions(t *testing.T) {
	root, err := checkoutRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range append(slices.Clone(toolTable), gateway, vaultProvider) {
		t.Run(tool.name, func(t *testing.T) {
			path := filepath.Join(root, "tools", tool.name, "go.mod")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			mod, err := modfile.Parse(path, text, nil)
			if err != nil {
				t.Fatal(err)
			}
			module, got := strings.TrimSuffix(tool.command, "/cmd/versitygw"), ""
			for _, req := range mod.Require {
				if req.Mod.Path == module {
					got = req.Mod.Version
				}
			}
			if want := "v" + tool.version; got != want && tool.name != vaultProvider.name { // it has no tag there
				t.Errorf("tools/%s/go.mod requires %s, the table says %s", tool.name, got, want)
			}
			if len(mod.Tool) != 1 || mod.Tool[0].Path != tool.command {
				t.Errorf("tools/%s/go.mod has no tool line for %s", tool.name, tool.command)
			}
			if !strings.HasPrefix(tool.buildName(), tool.name+"_"+tool.version) || tool.buildName() == tool.releaseName() {
				t.Errorf("cache names %q and %q must differ and carry the version", tool.buildName(), tool.releaseName())
			}
		})
	}
}

// Every policy file is valid HCL. The stack also writes Vault's into a real Vault.
func TestPoliciesParse(t *testing.T) {
	seen := 0
	err := fs.WalkDir(deploy.Policies, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := deploy.Policies.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		if _, err := hcl.ParseBytes(text); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil || seen < 4 {
		t.Errorf("walked over %d policies: %v", seen, err)
	}
}

func TestFinder(t *testing.T) {
	fake := func(t *testing.T, dir, version string) string {
		t.Helper()
		path := filepath.Join(dir, "nomad")
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho Nomad v"+version+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	quiet := ToolOptions{Progress: func(string) {}}
	t.Run("Path", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv("PATH", dir)
		want := fake(t, dir, "1.10.2")
		f := finder{opts: quiet, cache: t.TempDir()}
		if got, err := f.find(t.Context(), toolTable[0]); got != want || err != nil {
			t.Errorf("got %q (%v), want %q", got, err, want)
		}
	})
	t.Run("PathTooOld", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv("PATH", dir)
		fake(t, dir, "1.9.7")
		f := finder{opts: quiet, cache: t.TempDir()}
		_, err := f.find(t.Context(), toolTable[0]) // no go on this PATH
		wantError(t, err, "nomad is missing and cannot be built", "install Go", "1.10.0 or newer")
	})
	t.Run("Cache", func(t *testing.T) {
		cache := t.TempDir()
		want := filepath.Join(cache, toolTable[0].buildName())
		release := filepath.Join(cache, toolTable[0].releaseName())
		for _, path := range []string{release, want} {
			f := finder{opts: ToolOptions{Pinned: true, Progress: quiet.Progress}, cache: cache}
			if _, ok := f.cached(toolTable[0]); ok {
				t.Errorf("a pinned build was found in a cache without one")
			}
			if err := os.WriteFile(path, nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		f := finder{opts: quiet, cache: cache, releases: true}
		if got, _ := f.cached(toolTable[0]); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	// A replacement of go that builds immediately, or fails.
	build := func(t *testing.T, script string) (string, string, error) {
		t.Helper()
		dir, cache := t.TempDir(), t.TempDir()
		text := "#!/bin/sh\n[ $1 = env ] && exec printf '" + dir + "\\n" + dir + "\\n'\n" + script + "\n"
		if err := os.WriteFile(filepath.Join(dir, "go"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":/usr/bin:/bin")
		f := finder{opts: ToolOptions{Pinned: true, Progress: quiet.Progress}, cache: cache}
		got, err := f.find(t.Context(), toolTable[0])
		if left, _ := filepath.Glob(filepath.Join(cache, ".tmp*")); len(left) > 0 {
			t.Errorf("left in the cache: %v", left)
		}
		return got, filepath.Join(cache, toolTable[0].buildName()), err
	}
	t.Run("Build", func(t *testing.T) {
		got, want, err := build(t, `while [ "$1" != -o ]; do shift; done; echo built in $(basename $PWD) > $2; chmod +x $2`)
		if got != want || err != nil {
			t.Fatalf("got %q (%v), want %q", got, err, want)
		}
		if text, _ := os.ReadFile(got); string(text) != "built in nomad\n" {
			t.Errorf("the binary is %q", text)
		}
	})
	t.Run("ErrBuild", func(t *testing.T) {
		_, _, err := build(t, `echo 'no required module' >&2; exit 1`)
		wantError(t, err, "building nomad failed", "no required module", "cd tools/nomad")
	})
	t.Run("ErrMode", func(t *testing.T) {
		t.Setenv("ORCH_TOOLS", "buidl")
		_, err := Tools(t.Context(), ToolOptions{})
		wantError(t, err, "ORCH_TOOLS")
	})
}

// Of many callers one gets the lock, and the others are notified and wait.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var wg sync.WaitGroup
	var inside atomic.Bool
	for range 4 {
		wg.Go(func() {
			unlock, err := lockFile(t.Context(), path, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if !inside.CompareAndSwap(false, true) {
				t.Error("two have the lock")
			}
			time.Sleep(time.Millisecond) // long enough for the others to try
			inside.Store(false)
			unlock()
		})
	}
	wg.Wait()

	unlock, err := lockFile(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	told := false
	if _, err := lockFile(ctx, path, func() { told = true }); !errors.Is(err, context.DeadlineExceeded) || !told {
		t.Errorf("waiting for a held lock: told %v, error %v", told, err)
	}
}

func TestDevPorts(t *testing.T) {
	env := map[string]string{EnvConsulPort: "18500"}
	got, err := DevPorts(func(name string) string { return env[name] })
	if want := (Ports{4646, 18500, 8200}); got != want || err != nil {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	env[EnvVaultPort] = "x"
	_, err = DevPorts(func(name string) string { return env[name] })
	wantError(t, err, EnvVaultPort, `"x"`)
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}
