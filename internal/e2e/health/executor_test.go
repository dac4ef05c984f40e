package health

import (
	"errors"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// The executor of an engine's process is killed: Nomad reports the process as ended
// although it runs. There is never a second process on its brain, a stop returns when the
// process has ended, and the engine runs again with its memory.
func TestExecutorKilled(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=executor/", "ORCH_VOLUME_POOL=4", "ORCH_IDLE_TIMEOUT_S=0"))
	s, ctx := harness.OpenStores(t, stack), t.Context()
	c := r.Product(t, nil)
	harness.WatchBrains(t, stack)
	for name, after := range map[string]func(t *testing.T, user string, e *client.Engine){
		"Restart": func(t *testing.T, user string, _ *client.Engine) {
			harness.RunsAnew(t, c, user)
		},
		"Stop": func(t *testing.T, user string, e *client.Engine) {
			harness.Eventually(t, "it is stopped", func() error {
				err := harness.ErrOf(c.Stop(ctx, user))
				if errors.Is(err, client.ErrEngineNotRunning) { // after a stop that was not confirmed in time
					return nil
				}
				return err
			})
			if n := harness.Processes(stack, e.EngineID); n != 0 {
				t.Errorf("it is stopped, and has %d processes", n)
			}
			harness.Eventually(t, "it is started", func() error { return harness.ErrOf(c.Start(ctx, user)) })
		},
		"Rotate": func(t *testing.T, user string, e *client.Engine) {
			key := ""
			harness.Eventually(t, "its key is rotated", func() (err error) {
				key, err = c.RotateKey(ctx, user)
				if err != nil && !errors.Is(err, client.ErrEngineNotRunning) && !errors.Is(err, client.ErrEngineBusy) {
					t.Fatal(err)
				}
				return err // the service restarts it by itself
			})
			harness.RunsAnew(t, c, user)
			now := harness.AwaitEngine(t, c, user, "running", "")
			harness.KeyIs(t, now, key, true)
			harness.KeyIs(t, now, e.APIKey, false)
		},
		"Destroy": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := c.Provision(ctx, name, "")
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, name)
			executor := 0
			for _, task := range stack.Tasks() {
				if task.JobID == "engine-"+e.EngineID {
					executor = task.Executor()
				}
			}
			if executor == 0 {
				t.Fatal("its process has no executor")
			}
			if err := syscall.Kill(executor, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if after != nil {
				after(t, name, e)
				now := harness.AwaitEngine(t, c, name, "running", "")
				if err := harness.Export(t, now, now.APIKey).Knows(name); err != nil {
					t.Error(err)
				}
				if n := harness.Processes(stack, e.EngineID); n != 1 {
					t.Errorf("it has %d processes", n)
				}
			}
			if _, err := c.Destroy(ctx, name); err != nil {
				t.Error(err)
			}
			if n := harness.Processes(stack, e.EngineID); n != 0 {
				t.Errorf("it is destroyed, and has %d processes", n)
			}
			if left := s.Traces(e.EngineID); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
