// Package release tests what make release writes: that two builds are equal, and that the
// packages and images work, on real agents.
package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// build runs tools/release of a checkout for one platform. env are further variables of the
// run; the tool itself is built without them, with the cache of this machine.
func build(t *testing.T, checkout, out string, args []string, env ...string) {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "release")
	compile := exec.CommandContext(t.Context(), "go", "build", "-C", filepath.Join(checkout, "tools/release"), "-trimpath", "-o", tool, ".")
	compile.Env = append(os.Environ(), "GOTOOLCHAIN="+toolchain(t, checkout))
	if printed, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	cmd := exec.CommandContext(t.Context(), tool, append([]string{"-root", checkout, "-out", out, "-platforms", "linux/" + runtime.GOARCH}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	if printed, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
}

// toolchain returns the Go version of releases, as the Makefile does.
func toolchain(t *testing.T, checkout string) string {
	t.Helper()
	return "go" + output(t, "sed", "-n", "s/^GO_VERSION=//p", filepath.Join(checkout, "deploy/setup.sh"))
}

// repository returns the absolute path of this checkout.
func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(harness.Repository)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// output runs a command, and returns what it prints without the last line break.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var errors strings.Builder
	cmd.Stderr = &errors
	printed, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, printed, errors.String())
	}
	return strings.TrimSuffix(string(printed), "\n")
}

// need skips the test unless it runs as root with these programs; in CI it fails.
func need(t *testing.T, programs ...string) {
	t.Helper()
	var missing []string
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	switch {
	case missing == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("missing: %q", missing)
	default:
		t.Skipf("missing: %q", missing)
	}
}

// one returns the only file that matches.
func one(t *testing.T, pattern ...string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil || len(found) != 1 {
		t.Fatalf("%q: %q, %v", pattern, found, err)
	}
	return found[0]
}
