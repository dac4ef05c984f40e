package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
)

// TestOutages takes each dependency away, by a kill and by a pause: changes get
// 503 and change nothing, running engines go on, and all works again when it is
// back, without a restart of the service.
func TestOutages(t *testing.T) {
	t.Parallel()
	stack := ownStack(t)
	const prefix = "outage/"
	r := startService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "3"})
	c := r.product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "before the outages")
	pid := export(t, e, e.APIKey).Runs[0].PID

	for _, component := range []devstack.Component{devstack.Vault, devstack.Consul, devstack.Nomad} {
		for how, outage := range map[string]struct{ begin, end func() error }{
			"killed": {func() error { return stack.Kill(component) }, func() error { return stack.Restart(ctx, component) }},
			"paused": {func() error { return stack.Pause(component) }, func() error { return stack.Resume(component) }},
		} {
			t.Run(fmt.Sprint(component, " ", how), func(t *testing.T) {
				if err := outage.begin(); err != nil {
					t.Fatal(err)
				}
				// A health that is told within pingTrust of the last good answer
				// may still be good.
				eventually(t, "health names the culprit", func() error { return degraded(r.url, string(component)) })
				unavailable := func(name string, call func(context.Context) error) {
					t.Helper()
					limited, cancel := context.WithTimeout(ctx, 25*time.Second)
					defer cancel()
					err := call(limited)
					if limited.Err() != nil {
						t.Fatalf("%s hangs while %s is %s", name, component, how)
					}
					wantCode(t, err, 503, "BACKEND_UNAVAILABLE")
				}
				unavailable("provision", func(ctx context.Context) error { return second(c.Provision(ctx, "new", "")) })
				unavailable("destroy", func(ctx context.Context) error { return second(c.Destroy(ctx, "u")) })
				unavailable("rotate-key", func(ctx context.Context) error { return second(c.RotateKey(ctx, "u")) })
				if component != devstack.Vault {
					unavailable("stop", func(ctx context.Context) error { return second(c.Stop(ctx, "u")) })
				}
				// Nothing but the registry is needed to read an engine whose key
				// this replica knows.
				if component == devstack.Consul {
					unavailable("GET", func(ctx context.Context) error { return second(c.Engine(ctx, "u")) })
					unavailable("ready", c.Ready)
					if how == "killed" { // a paused one is waited for, each time
						r.everyOperation(t, c, "u")
					}
				} else if got, err := c.Engine(ctx, "u"); err != nil || got.APIKey != e.APIKey || got.Status != "running" {
					t.Fatalf("GET: %+v, %v", got, err)
				}
				if err := c.Live(ctx); err != nil {
					t.Fatalf("live: %v", err)
				}
				if err := export(t, e, e.APIKey).knows("before the outages"); err != nil {
					t.Fatal(err)
				}
				if err := outage.end(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "all works again", func() error {
					_, err := c.Provision(ctx, "new", "")
					var bad *client.Error
					if errors.As(err, &bad) && bad.Status != 503 && bad.Code != "ENGINE_BUSY" && bad.Code != "ENGINE_ALREADY_EXISTS" {
						t.Fatalf("provision after the outage: %v", err)
					}
					return err
				})
				if _, err := c.Destroy(ctx, "new"); err != nil {
					t.Fatal(err)
				}
				runs := export(t, e, e.APIKey).Runs
				if len(runs) != 1 || runs[0].PID != pid {
					t.Fatalf("the engine was restarted: %+v", runs)
				}
			})
		}
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	openStores(t, stack).wantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// degraded returns nil when /health is 503 and names the culprit.
func degraded(url, culprit string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h, err := (&client.Client{BaseURL: url}).Health(ctx)
	if err != nil {
		return err
	}
	if h.Status != "degraded" || h.Subsystems[culprit] == "ok" {
		return fmt.Errorf("health answers %+v", h)
	}
	return nil
}
