package outages

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/testpg"
)

// TestDatabaseAway makes the audit log's database unavailable: changes are refused before
// anything is touched, reads and admits of running engines continue, and everything works
// again when it is back. Two replicas share it.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	testpg.Need(t)
	pg, err := testpg.New()
	t.Cleanup(pg.Stop)
	if err != nil {
		t.Fatal(err)
	}
	database, err := pg.Database()
	if err != nil {
		t.Fatal(err)
	}
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_DATABASE_URL": database, "ORCH_VOLUME_POOL": "1"})
	c := all[0].Product(t, map[string]any{"max_engines": 5})
	admin := &client.Client{BaseURL: all[1].URL, AdminKey: harness.AdminKey}
	id := harness.ProductOf(t, admin, c)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	prefix := "replicas-" + t.Name() + "/"
	harness.Eventually(t, "the volume pool is full", func() error {
		if all[0].Scheduler.PooledVolumes()+all[1].Scheduler.PooledVolumes() < 2 {
			return context.DeadlineExceeded
		}
		return nil
	})
	before := s.Census(prefix)

	pg.Halt()
	for _, r := range all {
		at := harness.At(c, r)
		for name, call := range map[string]func() error{
			"provision": func() error { return harness.ErrOf(at.Provision(ctx, "new", "")) }, "stop": func() error { return harness.ErrOf(at.Stop(ctx, "u")) },
			"rotate-key": func() error { return harness.ErrOf(at.RotateKey(ctx, "u")) }, "destroy": func() error { return harness.ErrOf(at.Destroy(ctx, "u")) },
			"policy": func() error {
				return harness.ErrOf(admin.SetPolicy(ctx, id, client.Policy{}))
			},
			"delete":  func() error { return admin.DeleteProduct(ctx, id) },
			"metrics": func() error { return harness.ErrOf(at.Metrics(ctx)) },
		} {
			err := call()
			if err == nil {
				t.Fatalf("%s without an audit log", name)
			}
			harness.WantCode(t, err, 503, "BACKEND_UNAVAILABLE")
		}
		if a, err := harness.Admit(ctx, at, "u", true, true); err != nil || !a.Admitted || a.Engine.APIKey != e.APIKey {
			t.Errorf("admit: %+v, %v", a, err)
		}
		if a, err := harness.Admit(ctx, at, "nobody", false, false); err != nil || a.Reason != "engine_not_found" {
			t.Errorf("a denied admit: %+v, %v", a, err)
		}
		if got, err := at.Engine(ctx, "u"); err != nil || got.Status != "running" {
			t.Errorf("GET: %+v, %v", got, err)
		}
		if got := harness.ListEngines(t, at, ""); got.Total != 1 {
			t.Errorf("%d engines are listed", got.Total)
		}
		if err := at.Ready(ctx); err != nil {
			t.Errorf("ready: %v", err)
		}
		if err := degraded(r.URL, "audit"); err != nil {
			t.Error(err)
		}
	}
	s.WantCensus(prefix, before)

	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	// A call that got an error may have been carried out.
	harness.Eventually(t, "changes work again", func() error {
		err := harness.ErrOf(c.Stop(ctx, "u"))
		if errors.Is(err, client.ErrEngineNotRunning) {
			return nil
		}
		return err
	})
	// The other replica may have been refused a moment ago, and believes that for 2 s.
	harness.Eventually(t, "the other replica works again", func() error {
		err := harness.ErrOf(harness.At(c, all[1]).Destroy(ctx, "u"))
		if errors.Is(err, client.ErrEngineNotFound) {
			return nil
		}
		return err
	})
	// Both replicas read the same log.
	for _, r := range all {
		harness.Eventually(t, "the destroy is audited", func() error {
			if rows, _ := harness.AuditLog(t, harness.At(c, r), "?action=destroy"); len(rows) != 1 || rows[0].Outcome != "ok" {
				return fmt.Errorf("%+v", rows)
			}
			return nil
		})
	}
}
