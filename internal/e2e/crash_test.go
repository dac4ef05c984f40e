package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/fault"
)

// orchBinary is the service as it is shipped; faultyBinary has fault points.
var (
	orchBinary   = sync.OnceValues(func() (string, error) { return buildOrch("orch") })
	faultyBinary = sync.OnceValues(func() (string, error) { return buildOrch("orch-faulty", "-tags", fault.Tag) })
)

func buildOrch(name string, flags ...string) (string, error) {
	path := filepath.Join(filepath.Dir(binDir), name)
	build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "github.com/septemberai/orch/cmd/orch")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}

// startProcess runs `orch server` as a process of its own, to be killed; env
// adds to or replaces its configuration.
func startProcess(t *testing.T, stack *devstack.Stack, prefix string, env ...string) (*client.Client, *exec.Cmd) {
	t.Helper()
	orch, err := orchBinary()
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	var log bytes.Buffer
	database := filepath.Join(t.TempDir(), "audit.db")
	mount, token := mountOf(t, stack, prefix)
	cmd := exec.Command(orch, "server")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "ORCH_ADDR=" + addr, "ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_DRIVER=raw_exec",
		"ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR=" + binDir, "ORCH_ENGINE_LOGS=driver", "ORCH_CONSUL_PREFIX=" + prefix,
		"ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=1", "ORCH_LOG_LEVEL=debug", "ORCH_DATABASE_URL=sqlite://" + database,
		"NOMAD_ADDR=" + stack.NomadAddr, "CONSUL_HTTP_ADDR=" + stack.ConsulAddr, "VAULT_ADDR=" + stack.VaultAddr, "VAULT_TOKEN=" + token, "ORCH_VAULT_MOUNT=" + mount,
	}
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
			t.Logf("log of orch server:\n%s", tail(log.String(), 4000))
		}
	})
	c := &client.Client{BaseURL: "http://" + addr, AdminKey: adminKey}
	eventually(t, "orch server is ready", func() error { return c.Ready(t.Context()) })
	return c, cmd
}

// TestAnotherReplicaFinishesWhatADeadOneBegan kills a service in the middle of a
// provision, a stop and a destroy; the next one finishes each.
func TestAnotherReplicaFinishesWhatADeadOneBegan(t *testing.T) {
	t.Parallel()
	prefix := "crash/"
	c, cmd := startProcess(t, shared, prefix)
	p, err := c.RegisterProduct(t.Context(), "crash", "Crash", &client.Policy{AllowedImages: []string{"*"}, MaxEngines: new(3)})
	if err != nil {
		t.Fatal(err)
	}
	c.PlatformKey = p.PlatformAPIKey
	ctx := t.Context()
	stopping, err := c.Provision(ctx, "stopping", "reference-engine.term-delay-5s")
	if err != nil {
		t.Fatal(err)
	}
	destroying, err := c.Provision(ctx, "destroying", "reference-engine.term-delay-5s")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, stopping, stopping.APIKey, "kept")

	var begun sync.WaitGroup
	defer begun.Wait()
	for _, call := range []func(){
		func() { _, _ = c.Provision(ctx, "booting", "reference-engine.slow-boot-2s") },
		func() { _, _ = c.Stop(ctx, "stopping") },
		func() { _, _ = c.Destroy(ctx, "destroying") },
	} {
		begun.Go(call)
	}
	s := openStores(t, shared)
	eventually(t, "the three operations are under way", func() error {
		pairs, _, err := s.consul.KV().List(prefix+"engines/", nil)
		if err != nil {
			return err
		}
		all := ""
		for _, p := range pairs {
			all += string(p.Value)
		}
		if n := strings.Count(all, `"op":{`); n != 3 {
			return fmt.Errorf("%d of 3", n)
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	next, _ := startProcess(t, shared, prefix)
	next.PlatformKey = c.PlatformKey
	eventually(t, "the operations are finished", func() error {
		if got, err := next.Engine(ctx, "booting"); err != nil || got.Status != "running" {
			return fmt.Errorf("booting: %+v, %w", got, err)
		}
		if got, err := next.Engine(ctx, "stopping"); err != nil || got.Status != "stopped" {
			return fmt.Errorf("stopping: %+v, %w", got, err)
		}
		if _, err := next.Engine(ctx, "destroying"); err == nil {
			return fmt.Errorf("destroying is still there")
		}
		return nil
	})
	if left := s.traces(destroying.EngineID); len(left) > 0 {
		t.Errorf("left of the destroyed engine: %v", left)
	}
	started, err := next.Start(ctx, "stopping")
	if err != nil {
		t.Fatal(err)
	}
	if err := export(t, started, stopping.APIKey).knows("kept"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"booting", "stopping"} {
		if _, err := next.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	if got := s.census(prefix); got["rows"] != 0 || got["quota"] != 0 || got["engine-ids/"] != 0 {
		t.Errorf("left: %v", got)
	}
}

// A provision that is cut by a crash is finished by the next replica; the same
// call with the same Idempotency-Key gets its engine and key, not a second one.
func TestIdempotencyKeyOutlivesACrash(t *testing.T) {
	t.Parallel()
	const prefix = "idempotent-crash/"
	c, cmd := startProcess(t, shared, prefix)
	ctx := t.Context()
	p, err := c.RegisterProduct(ctx, "crash", "Crash", policyOf(t, anyImage))
	if err != nil {
		t.Fatal(err)
	}
	c.PlatformKey = p.PlatformAPIKey
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		_, _ = provisionOnce(ctx, c, "key", "u", "reference-engine.slow-boot-2s")
	}()
	s := openStores(t, shared)
	eventually(t, "the provision is under way", func() error {
		if rows := s.rows(prefix); len(rows) != 1 {
			return fmt.Errorf("%d rows", len(rows))
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-cut
	next, _ := startProcess(t, shared, prefix)
	next.PlatformKey = c.PlatformKey
	e, err := provisionOnce(ctx, next, "key", "u", "reference-engine.slow-boot-2s")
	if err != nil {
		t.Fatal(err)
	}
	got, err := next.Engine(ctx, "u")
	if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
		t.Fatalf("the retry got %+v, there is %+v, %v", e, got, err)
	}
	remember(t, e, e.APIKey, "one engine")
	if _, err := next.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if got := s.census(prefix); got["rows"] != 0 || got["quota"] != 0 {
		t.Errorf("left: %v", got)
	}
}

// SIGHUP makes the process read its admin key again; a second process on the
// same SQLite file refuses to start and says why.
func TestProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, database := filepath.Join(dir, "key"), "ORCH_DATABASE_URL=sqlite://"+filepath.Join(dir, "audit.db")
	if err := os.WriteFile(file, []byte("first-key-of-the-admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, cmd := startProcess(t, shared, "process/", "ORCH_ADMIN_KEY=", "ORCH_ADMIN_KEY_FILE="+file, database)
	c.AdminKey = "second-key-of-the-admin"
	products := func() error { return second(c.Products(t.Context())) }
	wantCode(t, products(), 401, "INVALID_ADMIN_KEY")
	if err := os.WriteFile(file, []byte(c.AdminKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new admin key works", products)

	orch, err := orchBinary()
	if err != nil {
		t.Fatal(err)
	}
	second := exec.Command(orch, "server")
	second.Env = append(slices.Clone(cmd.Env), "ORCH_ADDR="+freeAddr(t))
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "exactly one replica") || !strings.Contains(string(out), "ORCH_DATABASE_URL") {
		t.Errorf("a second process on the same file: %v, %s", err, out)
	}
}
