package cli

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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

// A service manager is told when the service listens, and that it stops (sd_notify).
func TestManagerIsTold(t *testing.T) {
	t.Parallel()
	at := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	next := func() string {
		b := make([]byte, 256)
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	p := harness.StartProcess(t, harness.Shared, "manager/", "NOTIFY_SOCKET="+at)
	if said := next(); said != "READY=1" {
		t.Errorf("first it says %q", said)
	}
	p.Terminate(t)
	if said := next(); said != "STOPPING=1" {
		t.Errorf("then it says %q", said)
	}
}
