package outages

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// everyOperation makes each call that needs the registry, and checks how it fails.
func everyOperation(r *harness.Replica, t *testing.T, c *client.Client, user string, status int, code string) {
	t.Helper()
	keys := map[string]string{harness.PlatformHeader: c.PlatformKey, harness.AdminHeader: harness.AdminKey}
	for _, o := range harness.Operations {
		if o.Key == "" {
			continue
		}
		o := o.Of(user, harness.NoProduct)
		r.Send(t, o, keys[o.Key]).Want(t, o, status, code)
	}
}

// TestOutages makes each dependency unavailable, by a kill and by a pause: changes get 503
// and change nothing, running engines continue, and everything works again when it is back,
// without a restart of the service.
func TestOutages(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	const prefix = "outage/"
	r := harness.StartService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "3"})
	c := r.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the outages")
	pid := harness.Export(t, e, e.APIKey).Runs[0].PID

	for _, component := range []devstack.Component{devstack.Vault, devstack.Consul, devstack.Nomad} {
		for how, outage := range map[string]struct{ begin, end func() error }{
			"killed": {func() error { return stack.Kill(component) }, func() error { return stack.Restart(ctx, component) }},
			"paused": {func() error { return stack.Pause(component) }, func() error { return stack.Resume(component) }},
		} {
			t.Run(fmt.Sprint(component, " ", how), func(t *testing.T) {
				if err := outage.begin(); err != nil {
					t.Fatal(err)
				}
				// Within pingTrust of the last good response, health may still report it as
				// good.
				harness.Eventually(t, "health names the culprit", func() error { return degraded(r.URL, string(component)) })
				unavailable := func(name string, call func(context.Context) error) {
					t.Helper()
					limited, cancel := context.WithTimeout(ctx, 25*time.Second)
					defer cancel()
					err := call(limited)
					if limited.Err() != nil {
						t.Fatalf("%s hangs while %s is %s", name, component, how)
					}
					harness.WantCode(t, err, 503, "BACKEND_UNAVAILABLE")
				}
				unavailable("provision", func(ctx context.Context) error { return harness.ErrOf(c.Provision(ctx, "new", "")) })
				unavailable("destroy", func(ctx context.Context) error { return harness.ErrOf(c.Destroy(ctx, "u")) })
				unavailable("rotate-key", func(ctx context.Context) error { return harness.ErrOf(c.RotateKey(ctx, "u")) })
				if component != devstack.Vault {
					unavailable("stop", func(ctx context.Context) error { return harness.ErrOf(c.Stop(ctx, "u")) })
				}
				// Only the registry is needed to read an engine whose key this replica has
				// cached.
				if component == devstack.Consul {
					unavailable("GET", func(ctx context.Context) error { return harness.ErrOf(c.Engine(ctx, "u")) })
					unavailable("ready", c.Ready)
					if how == "killed" { // each call waits for a paused one
						everyOperation(r, t, c, "u", http.StatusServiceUnavailable, "BACKEND_UNAVAILABLE")
					}
				} else if got, err := c.Engine(ctx, "u"); err != nil || got.APIKey != e.APIKey || got.Status != "running" {
					t.Fatalf("GET: %+v, %v", got, err)
				}
				if err := c.Live(ctx); err != nil {
					t.Fatalf("live: %v", err)
				}
				if err := harness.Export(t, e, e.APIKey).Knows("before the outages"); err != nil {
					t.Fatal(err)
				}
				if err := outage.end(); err != nil {
					t.Fatal(err)
				}
				harness.Eventually(t, "all works again", func() error {
					_, err := c.Provision(ctx, "new", "")
					var bad *client.Error
					switch {
					case errors.Is(err, client.ErrEngineAlreadyExists): // a call that got 503 was carried out
						return nil
					case errors.As(err, &bad) && bad.Status != 503 && bad.Code != "ENGINE_BUSY":
						t.Fatalf("provision after the outage: %v", err)
					}
					return err
				})
				if _, err := c.Destroy(ctx, "new"); err != nil {
					t.Fatal(err)
				}
				runs := harness.Export(t, e, e.APIKey).Runs
				if len(runs) != 1 || runs[0].PID != pid {
					t.Fatalf("the engine was restarted: %+v", runs)
				}
			})
		}
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.OpenStores(t, stack).WantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// degraded returns nil if /health is 503 and names the culprit.
func degraded(url, culprit string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h, err := (&client.Client{BaseURL: url}).Health(ctx)
	if err != nil {
		return err
	}
	if h.Status != "degraded" || h.Subsystems[culprit] == "ok" {
		return fmt.Errorf("health returns %+v", h)
	}
	return nil
}
