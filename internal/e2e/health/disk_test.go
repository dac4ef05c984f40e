package health

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestDiskNotMounted lets a node come back without the disk of the brains: no engine runs
// with an empty brain, none counts as deleted, and with the disk all engines run as before.
func TestDiskNotMounted(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(plugins, "orch-quota"), "github.com/septemberai/orch/cmd/orch-quota")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stack := harness.OwnStack(t, devstack.Config{VolumePlugins: plugins})
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=disk/", "ORCH_VOLUME_PLUGIN=orch-quota", "ORCH_VOLUME_POOL=1"))
	c, ctx, s := r.Product(t, nil), t.Context(), harness.OpenStores(t, stack)
	engines := map[string]*client.Engine{}
	for _, user := range []string{"runs", "stopped", "destroyed"} {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, user)
		engines[user] = e
		if user != "runs" {
			if _, err := c.Stop(ctx, user); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.AwaitReported(engines["runs"].EngineID)
	node := devstack.NomadClient(0)
	disk := filepath.Join(stack.Dir, string(node), "host_volumes")
	// reboot ends the agent and all tasks, and restarts the node with or without the disk.
	reboot := func(from, to string) {
		t.Helper()
		tasks := stack.Tasks()
		err := stack.Kill(node)
		for _, task := range tasks {
			for _, pid := range []int{task.Executor(), task.PID} {
				if pid > 0 {
					if kerr := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(kerr, syscall.ESRCH) {
						err = errors.Join(err, kerr)
					}
				}
			}
		}
		err = errors.Join(err, os.RemoveAll(to), os.Rename(from, to), os.MkdirAll(disk, 0o755), stack.Restart(ctx, node))
		if err != nil {
			t.Fatal(err)
		}
	}
	reboot(disk, disk+".unmounted")
	if refused := harness.WantCode(t, harness.ErrOf(c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED"); !strings.Contains(refused.Message, "disk of its volumes") {
		t.Errorf("the start got %q", refused.Message)
	}
	harness.AwaitEngine(t, c, "runs", "failed", "")
	if admitted, err := harness.Admit(ctx, c, "runs", false, false); err != nil || admitted.Admitted {
		t.Errorf("admitted: %+v, %v", admitted, err)
	}
	if _, err := c.Destroy(ctx, "destroyed"); err != nil {
		t.Error(err)
	}
	harness.Eventually(t, "the volume of the destroyed engine is listed, with what to do", func() error {
		if v, listed := r.Unreachable(t)[engines["destroyed"].EngineID]; !listed || !strings.Contains(v.Why, "mount its disk") {
			return fmt.Errorf("listed: %t, %q", listed, v.Why)
		}
		return nil
	})
	if found, err := os.ReadDir(disk); err != nil || len(found) > 0 {
		t.Errorf("%d volumes were created again, %v", len(found), err)
	}
	reboot(disk+".unmounted", disk)
	if _, err := c.Start(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"runs", "stopped"} {
		harness.Eventually(t, user+" has its memory", func() error {
			e, err := harness.EngineIs(t, c, user, "running", "")
			if err != nil {
				return err
			}
			return harness.Export(t, e, engines[user].APIKey).Knows(user)
		})
	}
	harness.Eventually(t, "the volume of the destroyed engine is deleted", func() error {
		if left := s.Traces(engines["destroyed"].EngineID); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
