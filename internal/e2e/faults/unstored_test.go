package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestAnotherReplicaEndsItDifferently: a replica gives up a provision while it cannot reach
// Consul, so that no other replica learns of it. Another replica takes over the stored
// operation, and its engine boots. The caller is told that the outcome is unknown, not that
// the engine failed, and the audit row contains the outcome.
func TestAnotherReplicaEndsItDifferently(t *testing.T) {
	t.Parallel()
	const prefix = "unstored/"
	database := harness.Postgres.Database(t)
	var cut atomic.Bool
	vars := func(bootTimeout, consul string) map[string]string {
		return map[string]string{
			"ORCH_DATABASE_URL": database, "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1",
			"ORCH_BOOT_TIMEOUT_S": bootTimeout, "CONSUL_HTTP_ADDR": consul,
		}
	}
	first := harness.StartService(t, harness.Shared, vars("5", harness.ConsulWay(t, func(*http.Request) bool { return cut.Load() })))
	other := harness.StartService(t, harness.Shared, vars("60", ""))
	c, ctx, s := first.Product(t, harness.AnyImage), t.Context(), harness.OpenStores(t, harness.Shared)

	told := make(chan error, 1)
	go func() { told <- harness.ErrOf(c.Provision(ctx, "u", "reference-engine.slow-boot-10s")) }()
	var row *engine.Row
	harness.Eventually(t, "the engine boots", func() error {
		rows, err := s.Engines(prefix)
		if err != nil || len(rows) != 1 || rows[0].Op == nil || rows[0].Op.Step != "boot" {
			return errors.New("it does not yet")
		}
		row = rows[0]
		return nil
	})
	cut.Store(true)
	defer cut.Store(false)
	// The other replica has more time for it.
	s.Edit(prefix, "u", func(row map[string]any) {
		row["op"].(map[string]any)["deadline"] = time.Now().Add(time.Minute).UTC()
	})
	s.EndSession(prefix, row.Op.Owner)
	select {
	case err := <-told:
		harness.WantCode(t, err, 503, "BACKEND_UNAVAILABLE")
	case <-time.After(90 * time.Second):
		t.Fatal("no response")
	}
	c = harness.At(c, other)
	harness.Eventually(t, "the other replica has ended it", func() error {
		e, err := c.Engine(ctx, "u")
		if err != nil || e.EngineID != row.EngineID || e.Status != "running" {
			return fmt.Errorf("%+v, %w", e, err)
		}
		return nil
	})
	cut.Store(false)
	harness.Eventually(t, "the audit row is complete", func() error {
		rows, _ := harness.AuditLog(t, c, "?action=provision")
		if len(rows) != 1 || rows[0].Outcome != "ok" {
			return fmt.Errorf("rows: %+v", rows)
		}
		return nil
	})
	if _, err := c.Destroy(context.WithoutCancel(ctx), "u"); err != nil {
		t.Error(err)
	}
}
