package e2e

import (
	"fmt"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// ownStack starts agents that a test may hurt, with a configuration of their own.
func ownStack(t *testing.T, cfg ...devstack.Config) *devstack.Stack {
	t.Helper()
	c := devstack.Config{}
	if len(cfg) > 0 {
		c = cfg[0]
	}
	c.Binaries = binaries
	stack, err := devstack.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	return stack
}

func ptr[T any](v T) *T { return &v }

// A drained node ends its engines; they say so, go nowhere without their brains,
// and run again when the node is open again.
func TestDrain(t *testing.T) {
	t.Parallel()
	stack := ownStack(t)
	r := startService(t, stack, with(soon, "ORCH_CONSUL_PREFIX=drain/", "ORCH_VOLUME_POOL=1"))
	c, ctx := r.product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "before the drain")
	s := openStores(t, stack)
	nodes, _, err := s.nomad.Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	drain := func(spec *nomad.DrainSpec, eligible bool) {
		t.Helper()
		if _, err := s.nomad.Nodes().UpdateDrain(nodes[0].ID, spec, eligible, nil); err != nil {
			t.Fatal(err)
		}
	}
	drain(&nomad.DrainSpec{Deadline: time.Minute}, false)
	awaitEngine(t, c, "u", "failed", "node_down")
	_, err = c.Start(ctx, "u")
	wantCode(t, err, 503, "CAPACITY_EXHAUSTED")
	if _, err := engineIs(t, c, "u", "failed", "node_down"); err != nil {
		t.Error(err)
	}
	drain(nil, true)
	e = awaitEngine(t, c, "u", "running", "")
	if err := export(t, e, e.APIKey).knows("before the drain"); err != nil {
		t.Error(err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// A node that is cut off for a while, beside a foreign job that is lost by that:
// the engine's process goes on, and is the engine again when the node is back.
func TestCutNodeBesideAForeignJob(t *testing.T) {
	t.Parallel()
	stack := ownStack(t)
	r := startService(t, stack, with(soon, "ORCH_CONSUL_PREFIX=cut/", "ORCH_VOLUME_POOL=1"))
	c, ctx := r.product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	s := openStores(t, stack)
	foreign := nomad.NewServiceJob("foreign", "foreign", "global", 50)
	group := nomad.NewTaskGroup("foreign", 1)
	group.Disconnect = &nomad.DisconnectStrategy{LostAfter: ptr(time.Second), Replace: ptr(false)}
	task := nomad.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"3600"}).Require(&nomad.Resources{CPU: ptr(10), MemoryMB: ptr(16)})
	if _, _, err := s.nomad.Jobs().Register(foreign.AddTaskGroup(group.AddTask(task)), nil); err != nil {
		t.Fatal(err)
	}
	status := func(job string) string {
		allocs, _, err := s.nomad.Jobs().Allocations(job, true, nil)
		if err != nil || len(allocs) == 0 {
			return fmt.Sprint(len(allocs), " allocations, ", err)
		}
		return allocs[0].ClientStatus
	}
	is := func(job, want string) func() error {
		return func() error {
			if got := status(job); got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		}
	}
	eventually(t, "the foreign job runs", is("foreign", "running"))
	if err := stack.Pause(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	awaitEngine(t, c, "u", "failed", "node_down")
	eventually(t, "the foreign job is lost", is("foreign", "lost"))
	eventually(t, "the engine is not lost", is("engine-"+e.EngineID, "unknown"))
	if err := stack.Resume(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	again := awaitEngine(t, c, "u", "running", "")
	if runs := export(t, again, e.APIKey).Runs; len(runs) != 1 || again.URL != e.URL {
		t.Errorf("the process was replaced: %+v at %s, was at %s", runs, again.URL, e.URL)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
