package lifecycle

import (
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestPolicyResizesAtTheNextStart: an engine gets a policy's new CPU and memory at its next
// start, in its row and in its job. If its node has no capacity for it, the start fails
// with that reason, and the engine is as before.
func TestPolicyResizesAtTheNextStart(t *testing.T) {
	t.Parallel()
	const prefix = "resize/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	p, err := r.Admin().RegisterProduct(ctx, "resized", "Resized", &client.Policy{MemoryMB: new(40)})
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	want := func(when string, cpu, memory int) {
		t.Helper()
		rows, err := s.Engines(prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.UserID == "u" && (row.Resources.CPUMHz != cpu || row.Resources.MemoryMB != memory) {
				t.Errorf("%s: the row has %+v, want %d MHz and %d MB", when, row.Resources, cpu, memory)
			}
		}
		job, _, err := s.Nomad.Jobs().Info("engine-"+e.EngineID, nil)
		if err != nil {
			t.Fatal(err)
		}
		if has := job.TaskGroups[0].Tasks[0].Resources; *has.CPU != cpu || *has.MemoryMB != memory {
			t.Errorf("%s: the job has %d MHz and %d MB, want %d and %d", when, *has.CPU, *has.MemoryMB, cpu, memory)
		}
	}
	restart := func() error {
		t.Helper()
		if _, err := c.Stop(ctx, "u"); err != nil && !strings.Contains(err.Error(), "stopped already") {
			t.Fatal(err)
		}
		return harness.ErrOf(c.Start(ctx, "u"))
	}
	policy := func(cpu, memory int) {
		t.Helper()
		if _, err := r.Admin().SetPolicy(ctx, p.ProductID, client.Policy{CPUMHz: &cpu, MemoryMB: &memory}); err != nil {
			t.Fatal(err)
		}
	}
	policy(12, 48)
	want("before its next start", 10, 40)
	if err := restart(); err != nil {
		t.Fatal(err)
	}
	want("after it", 12, 48)
	policy(12, 900_000)
	bad := harness.WantCode(t, restart(), http.StatusServiceUnavailable, "CAPACITY_EXHAUSTED")
	if !strings.Contains(bad.Message, "volume") || !strings.Contains(bad.Message, "900000 MB") {
		t.Errorf("it does not say why: %s", bad.Message)
	}
	if got, err := c.Engine(ctx, "u"); err != nil || got.Status != "stopped" {
		t.Errorf("after a start without room: %+v, %v", got, err)
	}
	policy(10, 36)
	if err := restart(); err != nil {
		t.Fatal(err)
	}
	want("reduced", 10, 36)
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
