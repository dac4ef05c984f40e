package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/fault"
)

var (
	// OrchBinary builds the service as it is shipped, once, and returns its path.
	OrchBinary = sync.OnceValues(func() (string, error) { return buildOrch("orch") })
	// faultyBinary has fault points.
	faultyBinary = sync.OnceValues(func() (string, error) { return buildOrch("orch-faulty", "-tags", fault.Tag) })
)

func buildOrch(name string, flags ...string) (string, error) {
	path := filepath.Join(filepath.Dir(BinDir), name)
	build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "github.com/septemberai/orch/cmd/orch")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}

// ServerEnv is the environment of `orch server` as a process on a stack; more adds to or
// replaces what is there.
func ServerEnv(t *testing.T, stack *devstack.Stack, addr, prefix, database string, more ...string) []string {
	t.Helper()
	mount, token := MountOf(t, stack, prefix)
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "ORCH_ADDR=" + addr, "ORCH_ADMIN_KEY=" + AdminKey, "ORCH_CONSUL_PREFIX=" + prefix, "ORCH_DATABASE_URL=" + database,
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR=" + BinDir, "ORCH_ENGINE_LOGS=driver",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32",
		"NOMAD_ADDR=" + stack.NomadAddr, "CONSUL_HTTP_ADDR=" + stack.ConsulAddr, "VAULT_ADDR=" + stack.VaultAddr, "VAULT_TOKEN=" + token, "ORCH_VAULT_MOUNT=" + mount,
	}, more...)
}

// StartProcess runs `orch server` as a process of its own, to be killed; env
// adds to or replaces its configuration.
func StartProcess(t *testing.T, stack *devstack.Stack, prefix string, env ...string) (*client.Client, *exec.Cmd) {
	t.Helper()
	orch, err := OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	addr := FreeAddr(t)
	var log bytes.Buffer
	cmd := exec.Command(orch, "server")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = ServerEnv(t, stack, addr, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"),
		"ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_VOLUME_POOL=1", "ORCH_LOG_LEVEL=debug")
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("log of orch server:\n%s", Tail(log.String(), 4000))
		}
	})
	c := &client.Client{BaseURL: "http://" + addr, AdminKey: AdminKey}
	Eventually(t, "orch server is ready", func() error { return c.Ready(t.Context()) })
	return c, cmd
}
