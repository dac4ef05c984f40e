package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/semver"
)

// TestVersion follows a checkout from a commit without a tag to a release.
func TestVersion(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=n", "-c", "user.email=e@example.com"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	read := func(version string, dirty bool) (source, error) {
		return readSource(t.Context(), dir, version, dirty)
	}
	git("init", "-q")
	git("commit", "-q", "--allow-empty", "-m", "empty")
	if _, err := read("", true); err == nil || !strings.Contains(err.Error(), "setup.sh") {
		t.Errorf("without a Go version: %v", err)
	}
	git("checkout", "-q", "-b", "work")
	if err := exec.CommandContext(t.Context(), "mkdir", filepath.Join(dir, "deploy")).Run(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "deploy/setup.sh"), "# first\nGO_VERSION=1.26.8\n")

	if _, err := read("", false); err == nil || !strings.Contains(err.Error(), "deploy/") {
		t.Errorf("with uncommitted files: %v", err)
	}
	git("add", ".")
	git("commit", "-q", "-m", "first")
	before, err := read("", false)
	if err != nil {
		t.Fatal(err)
	}
	if before.toolchain != "go1.26.8" || !strings.Contains(before.version, ".g"+before.commit[:12]) || semver.Compare(before.version, "v0.0.1") >= 0 {
		t.Errorf("without a tag: %+v", before)
	}
	git("tag", "v1.2.3")
	if s, err := read("", false); err != nil || s.version != "v1.2.3" || s.plain() != "1.2.3" {
		t.Errorf("with a tag: %+v, %v", s, err)
	}
	write(t, filepath.Join(dir, "file"), "text")
	if s, err := read("", true); err != nil || s.version != "v1.2.3-dirty" {
		t.Errorf("with a change: %+v, %v", s, err)
	}
	for _, wrong := range []string{"1.2.3", "v1.2", "v1.2.3+build", "v1.2.3 -X a=b"} {
		if s, err := read(wrong, true); err == nil {
			t.Errorf("accepts the version %q as %q", wrong, s.version)
		}
	}
}
