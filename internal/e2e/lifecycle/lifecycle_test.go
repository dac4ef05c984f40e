package lifecycle

import (
	"net/http"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestLifecycle(t *testing.T) { harness.EachDriver(t, testLifecycle) }

func testLifecycle(t *testing.T, d harness.Driver) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, d.With(nil))
	c := r.Product(t, nil)
	ctx := t.Context()

	e, err := c.Provision(ctx, "user-1", "")
	if err != nil {
		t.Fatal(err)
	}
	if e.Status != "running" || e.URL == "" || e.APIKey == "" || e.UserID != "user-1" {
		t.Fatalf("provision returned %+v", e)
	}
	harness.Remember(t, e, e.APIKey, "the sky is blue")

	got, err := c.Engine(ctx, "user-1")
	if err != nil {
		t.Fatal(err)
	}
	if got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.URL != e.URL || got.EngineVersion != d.Image("") || got.LastHealthAt == nil {
		t.Fatalf("GET returned %+v, provision %+v", got, e)
	}

	key, err := c.RotateKey(ctx, "user-1")
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := harness.EngineCall(ctx, e, e.APIKey, http.MethodGet, "/memory/export", nil, nil); status != http.StatusUnauthorized {
		t.Fatalf("the old key gets %d, want 401", status)
	}
	if got, err = c.Engine(ctx, "user-1"); err != nil || got.APIKey != key || got.URL != e.URL {
		t.Fatalf("after rotation GET returns %+v, %v", got, err)
	}

	if _, err := c.Stop(ctx, "user-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := harness.EngineCall(ctx, e, key, http.MethodGet, "/health", nil, nil); err == nil {
		t.Fatal("a stopped engine still responds")
	}
	_, err = c.Stop(ctx, "user-1")
	harness.WantCode(t, err, 409, "ENGINE_NOT_RUNNING")
	_, err = c.RotateKey(ctx, "user-1")
	harness.WantCode(t, err, 409, "ENGINE_NOT_RUNNING")

	started, err := c.Start(ctx, "user-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, key).Knows("the sky is blue"); err != nil {
		t.Fatal(err)
	}
	_, err = c.Start(ctx, "user-1")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_RUNNING")

	gone, err := c.Destroy(ctx, "user-1")
	if err != nil || gone.Status != "destroyed" || gone.EngineID != e.EngineID {
		t.Fatalf("destroy returned %+v, %v", gone, err)
	}
	_, err = c.Engine(ctx, "user-1")
	harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
	_, err = c.Destroy(ctx, "user-1")
	harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
	if left := harness.OpenStores(t, harness.Shared).Traces(e.EngineID); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
