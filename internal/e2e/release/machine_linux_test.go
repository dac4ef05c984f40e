package release

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// machine is a bare Debian whose systemd runs in a container of systemd-nspawn. Its network is
// that of this machine.
type machine struct {
	root string
	pid  string // of its first process
}

// debian returns a directory with a bare Debian 12 and systemd, which the test may change. It
// is a copy of one in the user's cache, which debootstrap makes once.
func debian(t *testing.T) string {
	t.Helper()
	caches, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cached := filepath.Join(caches, "orch", "debian-bookworm")
	if _, err := os.Stat(cached); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(cached), 0o755); err != nil {
			t.Fatal(err)
		}
		made, err := os.MkdirTemp(filepath.Dir(cached), "debian-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(made) }()
		output(t, "debootstrap", "--variant=minbase", "--include=systemd-sysv,dbus", "bookworm", filepath.Join(made, "root"))
		// Another run may have been first.
		if err := os.Rename(filepath.Join(made, "root"), cached); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	root := filepath.Join(t.TempDir(), "debian")
	output(t, "cp", "-a", cached, root)
	return root
}

// boot starts the machine, which ends with the test.
func boot(t *testing.T, root string) *machine {
	t.Helper()
	log := &harness.LogBuffer{}
	cmd := exec.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off",
		"--link-journal=no", "--directory="+root, "--boot")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // an orderly shutdown
		harness.Eventually(t, "the machine ends", func() error {
			select {
			case <-ended:
				return nil
			default:
				return errors.New("it runs")
			}
		})
		if t.Failed() {
			t.Logf("console of the machine:\n%s", harness.Tail(log.String(), 4000))
		}
	})
	m := &machine{root: root}
	harness.Eventually(t, "the machine has started", func() error {
		select {
		case <-ended:
			return nil
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(children)) {
			m.pid = pid
			if state, err := m.try("systemctl is-system-running"); err == nil || state == "degraded" {
				return nil
			}
		}
		return errors.New(harness.Tail(log.String(), 300))
	})
	if m.pid == "" {
		t.Fatalf("the machine ended:\n%s", log.String())
	}
	return m
}

// try runs a shell script in the machine, and returns what it prints.
func (m *machine) try(script string) (string, error) {
	cmd := exec.Command("nsenter", "--target="+m.pid, "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "sh", "-euc", script)
	printed, err := cmd.CombinedOutput()
	return strings.TrimSuffix(string(printed), "\n"), err
}

// run is try of a script that must not fail.
func (m *machine) run(t *testing.T, script string) string {
	t.Helper()
	printed, err := m.try(script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, printed)
	}
	return printed
}

// want compares what a script prints. It may fail.
func (m *machine) want(t *testing.T, script, want string) {
	t.Helper()
	if got, _ := m.try(script); got != want {
		t.Errorf("%s\nprinted %q, want %q", script, got, want)
	}
}

// write makes a file in the machine.
func (m *machine) write(t *testing.T, path, text, owner string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	m.run(t, "chown "+owner+" "+path)
}
