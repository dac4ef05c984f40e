package health

import (
	"errors"
	"fmt"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// A drained node ends its engines: they are reported as failed, do not move without their
// brains, and run again when the node is eligible again.
func TestDrain(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=drain/", "ORCH_VOLUME_POOL=1"))
	c, ctx := r.Product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the drain")
	s := harness.OpenStores(t, stack)
	nodes, _, err := s.Nomad.Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	drain := func(spec *nomad.DrainSpec, eligible bool) {
		t.Helper()
		if _, err := s.Nomad.Nodes().UpdateDrain(nodes[0].ID, spec, eligible, nil); err != nil {
			t.Fatal(err)
		}
	}
	drain(&nomad.DrainSpec{Deadline: time.Minute}, false)
	harness.AwaitEngine(t, c, "u", "failed", "node_down")
	err = harness.Patiently(t, "a start", func() error { return harness.ErrOf(c.Start(ctx, "u")) })
	harness.WantCode(t, err, 503, "CAPACITY_EXHAUSTED")
	if _, err := harness.EngineIs(t, c, "u", "failed", "node_down"); err != nil {
		t.Error(err)
	}
	drain(nil, true)
	e = harness.AwaitEngine(t, c, "u", "running", "")
	if err := harness.Export(t, e, e.APIKey).Knows("before the drain"); err != nil {
		t.Error(err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// A node is disconnected for a while, beside a foreign job that is lost by that: the
// engine's process continues, and is the engine again when the node is back.
func TestCutNodeBesideAForeignJob(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=cut/", "ORCH_VOLUME_POOL=1"))
	c, ctx := r.Product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	s := harness.OpenStores(t, stack)
	foreign := nomad.NewServiceJob("foreign", "foreign", "global", 50)
	group := nomad.NewTaskGroup("foreign", 1)
	group.Disconnect = &nomad.DisconnectStrategy{LostAfter: new(time.Second), Replace: new(false)}
	task := nomad.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"3600"}).Require(&nomad.Resources{CPU: new(10), MemoryMB: new(16)})
	if _, _, err := s.Nomad.Jobs().Register(foreign.AddTaskGroup(group.AddTask(task)), nil); err != nil {
		t.Fatal(err)
	}
	status := func(job string) string {
		allocs, _, err := s.Nomad.Jobs().Allocations(job, true, nil)
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
	harness.Eventually(t, "the foreign job runs", is("foreign", "running"))
	if err := stack.Pause(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, c, "u", "failed", "node_down")
	harness.Eventually(t, "the foreign job is lost", func() error {
		err := is("foreign", "lost")()
		if err != nil { // Nomad drops its own look at it now and then
			_, _, err2 := s.Nomad.Jobs().EvaluateWithOpts("foreign", nomad.EvalOptions{}, nil)
			err = errors.Join(err, err2)
		}
		return err
	})
	harness.Eventually(t, "the engine is not lost", is("engine-"+e.EngineID, "unknown"))
	if err := stack.Resume(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	again := harness.AwaitEngine(t, c, "u", "running", "")
	if runs := harness.Export(t, again, e.APIKey).Runs; len(runs) != 1 || again.URL != e.URL {
		t.Errorf("the process was replaced: %+v at %s, was at %s", runs, again.URL, e.URL)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
