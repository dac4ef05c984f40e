package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// A foreign job uses an engine's volume: a start is refused with the job's name, and a
// destroy frees the user_id and the quota anyway. The volume is listed, with the job that
// holds it, until the job releases it.
func TestVolumeHeldByAForeignJob(t *testing.T) {
	t.Parallel()
	prefix := "held/"
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=2", "ORCH_RECONCILE_INTERVAL_S=2"))
	s, c, ctx := harness.OpenStores(t, harness.Shared), r.Product(t, map[string]any{"max_engines": 1}), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	name := "holder-" + e.EngineID
	job := nomad.NewServiceJob(name, name, "global", 50)
	own, _, err := s.Nomad.Jobs().Info("engine-"+e.EngineID, nil)
	if err != nil {
		t.Fatal(err)
	}
	job.Constraints = []*nomad.Constraint{nomad.NewConstraint("${node.unique.id}", "=", harness.NodeOf(own))}
	group, task := nomad.NewTaskGroup("holder", 1), nomad.NewTask("holder", "raw_exec")
	group.Volumes = map[string]*nomad.VolumeRequest{"brain": {
		Name: "brain", Type: "host", Source: "engine-" + e.EngineID, AccessMode: "single-node-single-writer", AttachmentMode: "file-system",
	}}
	task.Config = map[string]any{"command": "/bin/sleep", "args": []string{"300"}}
	task.Resources = &nomad.Resources{CPU: new(10), MemoryMB: new(10)}
	if _, _, err := s.Nomad.Jobs().Register(job.AddTaskGroup(group.AddTask(task)), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = s.Nomad.Jobs().Deregister(name, true, nil) })
	harness.Eventually(t, "the foreign job runs", func() error { return s.Lives(name, true) })

	refused := harness.WantCode(t, harness.ErrOf(c.Start(ctx, "u")), 503, "CAPACITY_EXHAUSTED")
	if !strings.Contains(refused.Message, name) {
		t.Errorf("the start got %q", refused.Message)
	}
	began := time.Now()
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("destroyed after %s", took)
	}
	if g, listed := r.Unreachable(t)[e.EngineID]; !listed || !strings.Contains(g.Why, name) {
		t.Errorf("listed: %t, %+v", listed, g)
	}
	if _, err := c.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Nomad.Jobs().Deregister(name, true, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing remains of it", func() error {
		if left := s.Traces(e.EngineID); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	if unreachable := r.Unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
