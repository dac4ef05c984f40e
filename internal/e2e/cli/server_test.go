package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// SIGHUP makes the process read its admin key again. A second process on the same SQLite
// file refuses to start and reports the reason.
func TestProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, database := filepath.Join(dir, "key"), "ORCH_DATABASE_URL=sqlite://"+filepath.Join(dir, "audit.db")
	if err := os.WriteFile(file, []byte("first-key-of-the-admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := harness.StartProcess(t, harness.Shared, "process/", "ORCH_ADMIN_KEY=", "ORCH_ADMIN_KEY_FILE="+file, database)
	c.AdminKey = "second-key-of-the-admin"
	products := func() error { return harness.ErrOf(c.Products(t.Context())) }
	harness.WantCode(t, products(), 401, "INVALID_ADMIN_KEY")
	if err := os.WriteFile(file, []byte(c.AdminKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the new admin key works", products)

	orch, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	second := exec.Command(orch, "server")
	second.Env = append(slices.Clone(c.Cmd.Env), "ORCH_ADDR="+harness.FreeAddr(t))
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "exactly one replica") || !strings.Contains(string(out), "ORCH_DATABASE_URL") {
		t.Errorf("a second process on the same file: %v, %s", err, out)
	}
}
