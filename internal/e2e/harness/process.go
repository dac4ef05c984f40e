package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/fault"
)

var (
	// OrchBinary builds the service as it is shipped, once, and returns its path.
	OrchBinary = sync.OnceValues(func() (string, error) { return buildOrch("orch") })
	// NextOrchBinary builds the service of the same code as another version, NextVersion.
	NextOrchBinary = sync.OnceValues(func() (string, error) {
		return buildOrch("orch-next", "-ldflags", "-X github.com/septemberai/orch/internal/cmdline.version="+NextVersion)
	})
	// faultyBinary builds the service with fault points.
	faultyBinary = sync.OnceValues(func() (string, error) { return buildOrch("orch-faulty", "-tags", fault.Tag) })
)

// NextVersion is the version of NextOrchBinary.
const NextVersion = "v99.0.0-next"

func buildOrch(name string, flags ...string) (string, error) {
	path := filepath.Join(filepath.Dir(BinDir), name)
	build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "github.com/septemberai/orch/cmd/orch")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}

// Process is an `orch server` in a separate process.
type Process struct {
	*client.Client // as the admin
	Cmd            *exec.Cmd
	Log            *LogBuffer
	exited         chan struct{}
}

// Serve runs a binary's `orch server` on a stack until the test ends, and waits until it is
// ready, or has ended or is paused. env adds to its configuration or replaces parts of it.
func Serve(t *testing.T, binary string, stack *devstack.Stack, prefix, database string, env ...string) *Process {
	t.Helper()
	p := Launch(t, binary, stack, prefix, database, env...)
	Eventually(t, "orch server is ready", func() error {
		if p.Dead() || p.paused() == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return p.Ready(ctx)
	})
	return p
}

// Launch is like Serve, but does not wait.
func Launch(t *testing.T, binary string, stack *devstack.Stack, prefix, database string, env ...string) *Process {
	t.Helper()
	addr := FreeAddr(t)
	access, mount := Deploy(t, stack, prefix)
	p := &Process{
		Client: &client.Client{BaseURL: "http://" + addr, AdminKey: AdminKey}, Cmd: exec.Command(binary, "server"), Log: &LogBuffer{}, exited: make(chan struct{}),
	}
	p.Cmd.Stderr = p.Log
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Cmd.Env = append(append(access.Environ(),
		"PATH="+os.Getenv("PATH"), "ORCH_ADDR="+addr, "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_WRONG_KEYS_PER_MINUTE=0", "ORCH_ADMIN_KEY="+AdminKey, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_DATABASE_URL="+database,
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR="+BinDir, "ORCH_ENGINE_LOGS=driver",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_SNAPSHOT_URL="+SnapshotURL(t, stack, prefix), "ORCH_DRILLS_PER_DAY=0",
		"ORCH_VAULT_MOUNT="+mount, "ORCH_NOMAD_NAMESPACE="+stack.Namespace, "ORCH_ALLOW_OPEN_NOMAD="+strconv.FormatBool(access.Open()),
	), env...)
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Cmd.Wait(); close(p.exited) }()
	if undisturbed(stack) && !slices.ContainsFunc(env, isAddressOfStore) {
		calls.with(t, addr, false)
	}
	t.Cleanup(func() {
		p.End()
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(binary), Tail(p.Log.String(), 6000))
		}
	})
	return p
}

// isAddressOfStore reports whether a variable sets the address of a store: that of a proxy, by
// which a test disturbs it.
func isAddressOfStore(v string) bool {
	name, _, _ := strings.Cut(v, "=")
	return name == "CONSUL_HTTP_ADDR" || name == "NOMAD_ADDR" || name == "VAULT_ADDR"
}

// StartProcess serves with the shipped binary and a separate audit log.
func StartProcess(t *testing.T, stack *devstack.Stack, prefix string, env ...string) *Process {
	t.Helper()
	orch, err := OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	env = append([]string{"ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_VOLUME_POOL=1", "ORCH_LOG_LEVEL=debug"}, env...)
	return Serve(t, orch, stack, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), env...)
}

// Terminate makes it finish what is in progress and exit.
func (p *Process) Terminate(t *testing.T) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(2 * time.Minute):
		t.Fatal("orch server does not end")
	}
}

// End kills it, whether or not it is paused.
func (p *Process) End() {
	_ = p.Cmd.Process.Kill()
	<-p.exited
}

// Dead reports whether the process has ended.
func (p *Process) Dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// AwaitDeath waits until the enabled fault point has ended the process.
func (p *Process) AwaitDeath() error {
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-timer.C:
		return fmt.Errorf("the process is alive after %s", Patience)
	case <-p.exited:
	}
	if status, ok := p.Cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("the process ended with %s", p.Cmd.ProcessState)
	}
	return nil
}

// AwaitPause waits until the enabled fault point has paused the process.
func (p *Process) AwaitPause(t *testing.T) {
	t.Helper()
	Eventually(t, "the process is paused", p.paused)
}

// paused returns nil if the process is paused.
func (p *Process) paused() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
	if err != nil {
		return err
	}
	var pid int
	var name, state string
	if _, err := fmt.Sscanf(string(b), "%d %s %s", &pid, &name, &state); err != nil {
		return err
	}
	if state != "T" {
		return errors.New("its state is " + state)
	}
	return nil
}

// Signal sends the process a signal.
func (p *Process) Signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// NeverRecovered fails the test if the service ever treated the registry as one that went
// back in time. That would be wrong: a service was killed, but no store was restored.
func (p *Process) NeverRecovered(t *testing.T) {
	t.Helper()
	status, err := p.Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.State != "ok" || status.LastRecovery != nil || status.Keys != "ok" {
		t.Errorf("the registry is %+v, and was recovered: %+v", status, status.LastRecovery)
	}
}
