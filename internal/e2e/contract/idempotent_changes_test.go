package contract

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestChangesMadeTwice: a proxy that drops the first response and sends the call again gets
// the same response, from any replica, and later changes stay.
func TestChangesMadeTwice(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "2"})
	one := all[0].Product(t, harness.AnyImage)
	two := harness.At(one, all[1])
	ctx, key := t.Context(), client.IdempotencyKey
	first, err := one.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}

	// Concurrently on both replicas: one rotation, and both return its key.
	var keys [4]string
	var wg sync.WaitGroup
	for i, c := range []*client.Client{one, two, one, two} {
		wg.Go(func() {
			var err error
			if keys[i], err = c.RotateKey(ctx, "u", key("rotate")); err != nil {
				t.Errorf("rotation %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for _, got := range keys {
		if got != keys[0] || got == first.APIKey || got == "" {
			t.Fatal("one call with one key got several engine keys, or the old one")
		}
	}
	if status, err := harness.EngineCall(ctx, first, keys[0], "GET", "/memory/export", nil, nil); err != nil || status != 200 {
		t.Errorf("the engine responds to the rotated key with %d, %v", status, err)
	}
	if e, err := two.Engine(ctx, "u"); err != nil || e.APIKey != keys[0] {
		t.Errorf("the engine's key is another one: %v", err)
	}

	for range 2 {
		for _, c := range []*client.Client{one, two} {
			if e, err := c.Stop(ctx, "u", key("stop")); err != nil || e.Status != client.Stopped {
				t.Fatalf("stop: %+v, %v", e, err)
			}
		}
	}
	harness.WantCode(t, harness.ErrOf(one.Stop(ctx, "u")), 409, "ENGINE_NOT_RUNNING")
	harness.WantCode(t, harness.ErrOf(one.Stop(ctx, "u", key("another"))), 409, "ENGINE_NOT_RUNNING")
	started, err := one.Start(ctx, "u", key("start"))
	if err != nil {
		t.Fatal(err)
	}
	if e, err := two.Start(ctx, "u", key("start")); err != nil || e.Status != client.Running || e.URL != started.URL {
		t.Errorf("start: %+v, %v", e, err)
	}
	// Late retries return the old result, and change nothing.
	if e, err := two.Stop(ctx, "u", key("stop")); err != nil || e.Status != client.Stopped {
		t.Errorf("a late stop: %+v, %v", e, err)
	}
	if got, err := two.RotateKey(ctx, "u", key("rotate")); err != nil || got != keys[0] {
		t.Errorf("a late rotation: %v", err)
	}
	if e, err := one.Engine(ctx, "u"); err != nil || e.Status != client.Running || e.APIKey != keys[0] {
		t.Errorf("the engine is %+v, %v", e, err)
	}

	// A key can be used for one call only.
	for name, err := range map[string]error{
		"stop": harness.ErrOf(one.Stop(ctx, "u", key("start"))), "start": harness.ErrOf(one.Start(ctx, "v", key("start"))),
		"rotate-key": harness.ErrOf(one.RotateKey(ctx, "u", key("stop"))), "destroy": harness.ErrOf(one.Destroy(ctx, "u", key("stop"))),
	} {
		if harness.WantCode(t, err, 422, "IDEMPOTENCY_KEY_REUSED"); t.Failed() {
			t.Fatal(name)
		}
	}
	harness.WantCode(t, harness.ErrOf(one.Stop(ctx, "u", key(longKey()))), 400, "INVALID_REQUEST")

	gone, err := one.Destroy(ctx, "u", key("destroy"))
	if err != nil || gone.EngineID != first.EngineID {
		t.Fatalf("%+v, %v", gone, err)
	}
	// Even if the user has another engine now: that one stays.
	next, err := one.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if e, err := two.Destroy(ctx, "u", key("destroy")); err != nil || e.EngineID != first.EngineID || e.Status != "destroyed" {
		t.Errorf("a late destroy: %+v, %v", e, err)
	}
	if e, err := one.Engine(ctx, "u"); err != nil || e.EngineID != next.EngineID || e.Status != client.Running {
		t.Errorf("the next engine is %+v, %v", e, err)
	}
	harness.WantCode(t, harness.ErrOf(two.Start(ctx, "u", key("start"))), 409, "ENGINE_DESTROYED")
	harness.WantCode(t, harness.ErrOf(two.Stop(ctx, "u", key("stop"))), 409, "ENGINE_DESTROYED")
	harness.WantCode(t, harness.ErrOf(two.RotateKey(ctx, "u", key("rotate"))), 409, "ENGINE_DESTROYED")

	// Errors are not stored, and a destroy may interrupt another call with a key.
	harness.WantCode(t, harness.ErrOf(one.Stop(ctx, "nobody", key("later"))), 404, "ENGINE_NOT_FOUND")
	if _, err := one.Stop(ctx, "u", key("later")); err != nil {
		t.Error(err)
	}
	if _, err := one.Start(client.RespondAsync(ctx, 0), "u", key("cut")); err == nil {
		t.Error("the start was waited for")
	}
	if e, err := one.Destroy(ctx, "u", key("last")); err != nil || e.EngineID != next.EngineID {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := two.Destroy(ctx, "u", key("last")); err != nil || e.EngineID != next.EngineID {
		t.Errorf("%+v, %v", e, err)
	}
	harness.WantCode(t, harness.ErrOf(two.Start(ctx, "u", key("cut"))), 404, "ENGINE_NOT_FOUND")
}
