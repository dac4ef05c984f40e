package clients

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// oldestNode is the oldest major version of Node that the pinned tools run on.
const oldestNode = 20

// needNode skips a test on a machine without npm or a Node that is new enough.
func needNode(t *testing.T) {
	t.Helper()
	err := func() error {
		if _, err := exec.LookPath("npm"); err != nil {
			return err
		}
		out, err := exec.Command("node", "--version").Output()
		if err != nil {
			return err
		}
		major, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
		if n, err := strconv.Atoi(major); err != nil || n < oldestNode {
			return fmt.Errorf("node is %s", bytes.TrimSpace(out))
		}
		return nil
	}()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("this test needs npm and Node %d or newer: %v", oldestNode, err)
	default:
		t.Skipf("this test needs npm and Node %d or newer: %v", oldestNode, err)
	}
}

// checkout copies the document and a directory of npm's to a temporary directory, so that
// what is generated is made anew and not left in the repository, and installs the
// directory's packages. It returns the copy of the directory.
func checkout(t *testing.T, dir string) string {
	t.Helper()
	needNode(t)
	root := t.TempDir()
	for _, path := range []string{"docs/openapi.yaml", "LICENSE", dir} {
		copyTree(t, filepath.Join(harness.Repository, path), filepath.Join(root, path))
	}
	dir = filepath.Join(root, dir)
	if err := os.Symlink(installed(t, dir), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyTree copies what is in the repository: not what npm and the generators made there.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	made := map[string]bool{"node_modules": true, "api": true, "build": true, "dist": true, "api.ts": true}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if made[d.Name()] {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(from, path)
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// installed returns the packages of a directory's package-lock.json. They are installed once
// per machine, beside the agents' cache; no script of a package runs.
func installed(t *testing.T, dir string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	names := []string{"package.json", "package-lock.json", ".npmrc"}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	target := filepath.Join(cache, "orch", "npm", fmt.Sprintf("%s-%x", filepath.Base(dir), hash.Sum(nil)[:8]))
	modules := filepath.Join(target, "node_modules")
	if _, err := os.Stat(modules); err == nil {
		return modules
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	// It is complete when it gets its name.
	tmp, err := os.MkdirTemp(filepath.Dir(target), ".tmp-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, name := range names {
		copyTree(t, filepath.Join(dir, name), filepath.Join(tmp, name))
	}
	run(t, tmp, nil, "npm", "ci", "--ignore-scripts", "--prefer-offline")
	if err := os.Rename(tmp, target); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return modules
}

// run runs a program, which must succeed, and returns its output.
func run(t *testing.T, dir string, environ []string, name string, args ...string) string {
	t.Helper()
	out, err := try(t, dir, environ, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, harness.Tail(out, 8000))
	}
	return out
}

// try runs a program, and returns its output.
func try(t *testing.T, dir string, environ []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "NO_COLOR=1", "GOWORK=off", "CI=true"), environ...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// bin returns the path of a program of an installed package.
func bin(dir, name string) string { return filepath.Join(dir, "node_modules", ".bin", name) }
