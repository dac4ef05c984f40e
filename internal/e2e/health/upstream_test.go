package health

import (
	"fmt"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestUpstreamDown: an engine that reports that only its provider fails is not restarted.
// It keeps running, with the reason why it cannot serve, until it recovers. If its own
// brain fails, it is failed like any other engine.
func TestUpstreamDown(t *testing.T) {
	t.Parallel()
	const prefix = "upstream/"
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=1"))
	c, s := r.Product(t, harness.AnyImage), harness.OpenStores(t, harness.Shared)
	e, err := c.Provision(t.Context(), "u", "reference-engine.fail-health-file")
	if err != nil {
		t.Fatal(err)
	}
	failHealth(t, s, prefix, true, "provider")
	harness.AwaitEngine(t, c, "u", "running", "upstream_down")
	if a, err := harness.Admit(t.Context(), c, "u", false, false); err != nil || !a.Admitted {
		t.Errorf("admit while its provider is down: %+v, %v", a, err)
	}
	harness.Eventually(t, "it is counted as unhealthy", func() error {
		status, err := c.Status(t.Context())
		if err != nil || status.UnhealthyCount != 1 || status.ByStatus["running"] != 1 {
			return fmt.Errorf("%+v, %w", status, err)
		}
		return nil
	})
	failHealth(t, s, prefix, false)
	var again *client.Engine
	harness.Eventually(t, "it is healthy", func() (err error) {
		if again, err = c.Engine(t.Context(), "u"); err != nil || again.Status != "running" || again.Reason != "" {
			return fmt.Errorf("%+v, %w", again, err)
		}
		return nil
	})
	if runs := harness.Export(t, again, e.APIKey).Runs; len(runs) != 1 {
		t.Errorf("it was restarted: %+v", runs)
	}
	if got := harness.Actions(t, c, "u"); got["health_failed upstream_down"] != 1 || got["health_recovered"] != 1 || got["auto_restart_start"] != 0 {
		t.Errorf("audit: %v", got)
	}
	failHealth(t, s, prefix, true, "provider")
	harness.AwaitEngine(t, c, "u", "running", "upstream_down")
	failHealth(t, s, prefix, true, "brain")
	harness.AwaitEngine(t, c, "u", "failed", "unhealthy")
	if err := harness.Patiently(t, "a destroy", func() error { return harness.ErrOf(c.Destroy(t.Context(), "u")) }); err != nil {
		t.Fatal(err)
	}
}
