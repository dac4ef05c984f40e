package contract

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "2"})
	c := all[0].Product(t, harness.AnyImage)
	ctx := t.Context()

	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]int{}
	for i := range 12 {
		wg.Go(func() {
			e, err := harness.ProvisionOnce(ctx, harness.At(c, all[i%2]), "first", "u", "")
			if err != nil || e.Status != "running" || e.URL == "" {
				t.Errorf("got %+v, %v", e, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[e.EngineID+" "+e.APIKey+" "+e.URL]++
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Fatalf("%d different responses", len(got))
	}
	first, err := harness.ProvisionOnce(ctx, c, "first", "u", "")
	if err != nil {
		t.Fatal(err)
	}
	// Without the key it is another call; with the key and another body it is an error.
	_, err = c.Provision(ctx, "u", "")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
	for _, call := range [][2]string{{"other", ""}, {"u", "reference-engine.v2"}} {
		_, err = harness.ProvisionOnce(ctx, harness.At(c, all[1]), "first", call[0], call[1])
		harness.WantCode(t, err, 422, "IDEMPOTENCY_KEY_REUSED")
	}
	// Keys are separate for each product.
	stranger := all[0].Product(t, nil)
	theirs, err := harness.ProvisionOnce(ctx, stranger, "first", "u", "")
	if err != nil || theirs.EngineID == first.EngineID {
		t.Fatalf("another product's call: %+v, %v", theirs, err)
	}
	// The retry returns the engine's current key, even while it is stopped.
	key, err := c.RotateKey(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	again, err := harness.ProvisionOnce(ctx, c, "first", "u", "")
	if err != nil || again.APIKey != key || again.EngineID != first.EngineID || again.URL != first.URL || again.Status != "running" {
		t.Fatalf("after a rotation and a stop: %+v, %v", again, err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	_, err = harness.ProvisionOnce(ctx, c, "first", "u", "")
	harness.WantCode(t, err, 409, "ENGINE_DESTROYED")
	// Even if the user has another engine now.
	if _, err := c.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	_, err = harness.ProvisionOnce(ctx, harness.At(c, all[1]), "first", "u", "")
	harness.WantCode(t, err, 409, "ENGINE_DESTROYED")

	// Errors are not stored.
	_, err = harness.ProvisionOnce(ctx, c, "failing", "bad", "reference-engine.exit-at-start")
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	_, err = harness.ProvisionOnce(ctx, c, "failing", "bad", "reference-engine.exit-at-start")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
	if _, err := c.Destroy(ctx, "bad"); err != nil {
		t.Fatal(err)
	}
	if _, err := harness.ProvisionOnce(ctx, c, "failing", "bad", ""); err != nil {
		t.Errorf("the key of a failed call, used for another: %v", err)
	}
	for _, bad := range []string{"", string(make([]byte, 0)), longKey()} {
		_, err := harness.ProvisionOnce(ctx, c, bad, "never", "")
		if bad != "" {
			harness.WantCode(t, err, 400, "INVALID_REQUEST")
		}
	}
	for _, user := range []string{"u", "bad"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	if _, err := stranger.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

func longKey() string {
	b := make([]byte, 256)
	for i := range b {
		b[i] = 'k'
	}
	return string(b)
}
