package admission

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestConcurrentProvisionsOfOneUser(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c := r.Product(t, nil)
	got := harness.Outcomes(50, func(int) error {
		_, err := c.Provision(t.Context(), "the-one", "")
		return err
	})
	// None is ok if the harness had to send that call again.
	if got["ok"] > 1 || got["ok"]+got["409 ENGINE_ALREADY_EXISTS"] != 50 {
		t.Fatalf("got %v, want 1 ok and 49 × 409 ENGINE_ALREADY_EXISTS", got)
	}
	harness.AwaitEngine(t, c, "the-one", "running", "")
	if _, err := c.Destroy(t.Context(), "the-one"); err != nil {
		t.Fatal(err)
	}
}

func TestQuotaIsExact(t *testing.T) {
	// This is not parallel, because fifty engines boot concurrently on this machine.
	prefix := "quota-test/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_BOOT_TIMEOUT_S": "240", "ORCH_CONSUL_PREFIX": prefix})
	c := r.Product(t, map[string]any{"max_engines": 50})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	got := harness.Outcomes(60, func(i int) error {
		return harness.ProvisionSurely(ctx, c, fmt.Sprintf("user-%02d", i))
	})
	if got["ok"] != 50 || got["429 QUOTA_EXCEEDED"] != 10 {
		t.Fatalf("got %v, want 50 ok and 10 × 429 QUOTA_EXCEEDED", got)
	}
	if rows := harness.OpenStores(t, harness.Shared).Rows(prefix); len(rows) != 50 {
		t.Fatalf("%d rows, want 50", len(rows))
	}
	// A user who has an engine gets that error even if the product is full.
	var has string
	for i := 0; has == ""; i++ {
		if _, err := c.Engine(ctx, fmt.Sprintf("user-%02d", i)); err == nil {
			has = fmt.Sprintf("user-%02d", i)
		}
	}
	_, err := c.Provision(ctx, has, "")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
	// Destroy frees the quota.
	if _, err := c.Destroy(ctx, has); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Provision(ctx, has, ""); err != nil {
		t.Fatalf("after a destroy: %v", err)
	}
	got = harness.Outcomes(60, func(i int) error {
		_, err := c.Destroy(ctx, fmt.Sprintf("user-%02d", i))
		return err
	})
	// A destroy that was sent again may find that it is done.
	if got["ok"] > 50 || got["ok"]+got["404 ENGINE_NOT_FOUND"] != 60 {
		t.Fatalf("destroys: got %v, want 50 ok and 10 × 404", got)
	}
	if rows := harness.OpenStores(t, harness.Shared).Rows(prefix); len(rows) != 0 {
		t.Fatalf("rows are left: %v", rows)
	}
}

func TestAnotherOperationIsUnderWay(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c := r.Product(t, nil)
	ctx := t.Context()
	done := make(chan error, 1)
	go func() {
		_, err := c.Provision(ctx, "slow", "reference-engine")
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(ctx, "slow"); err != nil {
		t.Fatal(err)
	}
	// While a slow provision runs, every other change of that engine is refused.
	slow := r.Product(t, map[string]any{"allowed_images": []string{"reference-engine.*"}})
	go func() {
		_, err := slow.Provision(ctx, "u", "reference-engine.slow-boot-10s")
		done <- err
	}()
	harness.Eventually(t, "the row exists", func() error {
		e, err := slow.Engine(ctx, "u")
		if err == nil && e.Status != "provisioning" {
			t.Fatalf("status %q while it boots", e.Status)
		}
		return err
	})
	for name, call := range map[string]func() error{
		"start":  func() error { _, err := slow.Start(ctx, "u"); return err },
		"stop":   func() error { _, err := slow.Stop(ctx, "u"); return err },
		"rotate": func() error { _, err := slow.RotateKey(ctx, "u"); return err },
	} {
		if e := harness.WantCode(t, call(), http.StatusConflict, "ENGINE_BUSY"); e.RetryAfter < time.Second {
			t.Errorf("%s: ENGINE_BUSY without Retry-After", name)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// An engine that is being stopped cannot be kept awake.
	if _, err := slow.Provision(ctx, "lingers", "reference-engine.term-delay-5s"); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := slow.Stop(ctx, "lingers")
		done <- err
	}()
	harness.Eventually(t, "the stop is under way", func() error {
		_, err := slow.KeepAwake(ctx, "lingers", time.Minute)
		if !errors.Is(err, client.ErrEngineBusy) {
			return fmt.Errorf("keep-awake: %w", err)
		}
		return nil
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Destroy(ctx, "lingers"); err != nil {
		t.Fatal(err)
	}
	// Equal stops join: both callers learn that the engine is stopped.
	if got := harness.Outcomes(2, func(int) error { _, err := slow.Stop(ctx, "u"); return err }); got["ok"] == 0 || got["ok"]+got["409 ENGINE_NOT_RUNNING"] != 2 {
		t.Fatalf("two stops: %v", got)
	}
	// Many concurrent starts and stops: each is done or refused, and the engine is sound in
	// the end.
	got := harness.Outcomes(20, func(i int) error {
		if i%2 == 0 {
			_, err := slow.Start(ctx, "u")
			return err
		}
		_, err := slow.Stop(ctx, "u")
		return err
	})
	for what := range got {
		switch what {
		case "ok", "409 ENGINE_BUSY", "409 ENGINE_ALREADY_RUNNING", "409 ENGINE_NOT_RUNNING":
		default:
			t.Errorf("storm: %q", what)
		}
	}
	if got := harness.Outcomes(5, func(int) error { _, err := slow.Destroy(ctx, "u"); return err }); got["ok"] == 0 || got["ok"]+got["404 ENGINE_NOT_FOUND"] != 5 {
		t.Fatalf("five destroys: %v", got)
	}
}

func TestDestroyCutsAProvisionShort(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c := r.Product(t, map[string]any{"allowed_images": []string{"reference-engine.*"}, "max_engines": 1})
	ctx := t.Context()
	done := make(chan error, 1)
	go func() {
		_, err := c.Provision(ctx, "u", "reference-engine.slow-boot-30s")
		done <- err
	}()
	var id string
	harness.Eventually(t, "the engine is booting", func() error {
		e, err := c.Engine(ctx, "u")
		if err != nil {
			return err
		}
		id = e.EngineID
		if !strings.Contains(strings.Join(harness.OpenStores(t, harness.Shared).Traces(id), ","), "nomad job") {
			return errors.New("its job is not registered yet")
		}
		return nil
	})
	gone, err := c.Destroy(ctx, "u")
	if err != nil || gone.EngineID != id {
		t.Fatalf("destroy: %+v, %v", gone, err)
	}
	harness.WantCode(t, <-done, http.StatusConflict, "ENGINE_BUSY")
	if left := harness.OpenStores(t, harness.Shared).Traces(id); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	// The quota is free again.
	e, err := c.Provision(ctx, "u2", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Destroy(ctx, e.UserID); err != nil {
		t.Fatal(err)
	}
}
