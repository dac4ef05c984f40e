package contract

import (
	"fmt"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// An admit that boots an engine fails with the same errors as a provision or a start.
func TestAdmitFailsAsABootDoes(t *testing.T) {
	t.Parallel()
	usual := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	short := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1", "ORCH_BOOT_TIMEOUT_S": "6"})
	ctx := t.Context()
	for _, tc := range []struct {
		policy map[string]any
		status int
		code   string
		leaves bool // an engine, as failed
	}{
		{map[string]any{"engine_image": "reference-engine.exit-at-start"}, 502, "ENGINE_BOOT_FAILED", true},
		{map[string]any{"engine_image": "reference-engine.never-listen"}, 504, "BOOT_TIMEOUT", true},
		{map[string]any{"memory_mb": 100_000_000}, 503, "CAPACITY_EXHAUSTED", false},
		{map[string]any{"max_engines": 0}, 429, "QUOTA_EXCEEDED", false},
	} {
		t.Run(tc.code, func(t *testing.T) {
			t.Parallel()
			r := usual
			if tc.code == "BOOT_TIMEOUT" {
				r = short
			}
			c := r.Product(t, tc.policy)
			harness.WantCode(t, harness.ErrOf(harness.Admit(ctx, c, "u", true, true)), tc.status, tc.code)
			if !tc.leaves {
				harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "u")), 404, "ENGINE_NOT_FOUND")
				return
			}
			if a, err := harness.Admit(ctx, c, "u", true, true); err != nil || a.Reason != "engine_unhealthy" {
				t.Errorf("after it: %+v, %v", a, err)
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A replica whose token Vault refuses reports an error that will not go away by itself. A
// replica with a valid token finishes what it began.
func TestBackendRefuses(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"ORCH_VOLUME_POOL": "1", "ORCH_ENGINE_ENV_PASSTHROUGH": ""}
	good := harness.StartReplicas(t, 1, vars)[0]
	vars["VAULT_TOKEN"] = "not-a-token-of-this-vault"
	bad := harness.StartReplicas(t, 1, vars)[0]
	c := good.Product(t, nil)
	refused, ctx := harness.At(c, bad), t.Context()
	for _, user := range []string{"running", "stopped"} {
		if _, err := c.Provision(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"provision": func() error { return harness.ErrOf(refused.Provision(ctx, "new", "")) }, "GET": func() error { return harness.ErrOf(refused.Engine(ctx, "running")) },
		"admit": func() error { return harness.ErrOf(harness.Admit(ctx, refused, "running", false, false)) }, "start": func() error { return harness.ErrOf(refused.Start(ctx, "stopped")) },
		"rotate-key": func() error { return harness.ErrOf(refused.RotateKey(ctx, "running")) },
	} {
		err := call()
		if err == nil {
			t.Fatalf("%s without a token", name)
		}
		harness.WantCode(t, err, 502, "BACKEND_REFUSED")
	}
	// A refused call changes nothing, once it is undone.
	harness.Eventually(t, "the start is undone", func() error { return harness.InState(t, c, "stopped", "stopped") })
	harness.Eventually(t, "the key can be rotated", func() error { return harness.ErrOf(c.RotateKey(ctx, "running")) })
	harness.WantCode(t, harness.ErrOf(refused.Destroy(ctx, "running")), 502, "BACKEND_REFUSED")
	// Nothing was begun: it does not know whether its registry is complete.
	bad.Stop()
	if got := users(harness.ListEngines(t, c, "")); len(got) != 2 {
		t.Errorf("engines of %v", got)
	}
	for _, user := range []string{"running", "stopped"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// TestSilentNode pauses the only node: a stop is carried out when the node is back, a start
// finds no capacity, and a destroy frees the user_id and the quota at once, while the
// volume is listed as unreachable.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_POOL": "3"})
	c, ctx := r.Product(t, map[string]any{"max_engines": 3}), t.Context()
	theAdmin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	engines := map[string]*client.Engine{}
	for _, user := range []string{"running", "stopped", "destroyed"} {
		var err error
		if engines[user], err = c.Provision(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
	}
	harness.Remember(t, engines["running"], engines["running"].APIKey, "before the silence")
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	s := harness.OpenStores(t, stack)
	if err := stack.Pause(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	resume := func() error { return stack.Resume(devstack.NomadClient(0)) }
	t.Cleanup(func() { _ = resume() })
	harness.Eventually(t, "the node counts as down", func() error {
		nodes, _, err := s.Nomad.Nodes().List(nil)
		if err != nil || len(nodes) != 1 || nodes[0].Status == "ready" {
			return fmt.Errorf("%d nodes, %w", len(nodes), err)
		}
		return nil
	})

	harness.WantCode(t, harness.ErrOf(c.Stop(ctx, "running")), 504, "STOP_UNCONFIRMED")
	harness.WantCode(t, harness.ErrOf(c.Start(ctx, "running")), 409, "ENGINE_BUSY")
	harness.WantCode(t, harness.ErrOf(c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	if got, err := c.Engine(ctx, "stopped"); err != nil || got.Status != "stopped" {
		t.Errorf("after a start without a node: %+v, %v", got, err)
	}
	if _, err := c.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "destroyed")), 404, "ENGINE_NOT_FOUND")
	// Its quota is free; only a node is missing.
	harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "next", "")), 503, "CAPACITY_EXHAUSTED")
	if st, err := statusOf(ctx, theAdmin); err != nil || *st.UnreachableVolumes != 1 || st.Total != 2 {
		t.Errorf("the admin's status is %+v, %v", st, err)
	}

	if err := resume(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the node is back, the stop carried out, the unreachable volume deleted", func() error {
		got, err := c.Engine(ctx, "running")
		if err != nil || got.Status != "stopped" {
			return fmt.Errorf("%+v, %w", got, err)
		}
		st, err := statusOf(ctx, theAdmin)
		if err != nil || *st.UnreachableVolumes != 0 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	})
	if left := s.Traces(engines["destroyed"].EngineID); len(left) > 0 {
		t.Errorf("left of the destroyed engine: %v", left)
	}
	started, err := c.Start(ctx, "running")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, engines["running"].APIKey).Knows("before the silence"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"running", "stopped"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}
