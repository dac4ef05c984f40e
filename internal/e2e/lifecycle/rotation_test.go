package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// An engine does not accept its new key: the rotation is not confirmed and continues in the
// background. Meanwhile callers get the key that the engine accepts, and a stop, a start or
// a destroy ends the rotation: the next process has the new key.
func TestRotationIsNotConfirmed(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{
		"ORCH_ENGINE_KEY_RELOAD": "signal", "ORCH_ENGINE_IMAGE": "reference-engine.no-reload", "ORCH_BOOT_TIMEOUT_S": "20", "ORCH_VOLUME_POOL": "3",
	})
	c, ctx := r.Product(t, nil), t.Context()
	both := r.Product(t, map[string]any{"engine_image": "reference-engine.two-keys"})
	for name, tc := range map[string]struct {
		c    *client.Client
		says string
		end  func(*client.Client, string) error
	}{
		"Stop":    {c, "still accepts the old key", func(c *client.Client, user string) error { return harness.ErrOf(c.Stop(ctx, user)) }},
		"Start":   {c, "still accepts the old key", func(c *client.Client, user string) error { return harness.ErrOf(c.Start(ctx, user)) }},
		"TwoKeys": {both, "accepts both the new key and the old one", func(c *client.Client, user string) error { return harness.ErrOf(c.Stop(ctx, user)) }},
		"Destroy": {c, "still accepts the old key", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, user := tc.c, strings.ToLower(name)
			e, err := c.Provision(ctx, user, "")
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, user)
			refused := harness.WantCode(t, harness.ErrOf(c.RotateKey(ctx, user)), 504, "ROTATION_UNCONFIRMED")
			if !strings.Contains(refused.Message, tc.says) {
				t.Errorf("it got %q, want %q", refused.Message, tc.says)
			}
			harness.WantCode(t, harness.ErrOf(c.RotateKey(ctx, user)), 409, "ENGINE_BUSY")
			asked := time.Now()
			admitted, err := harness.Admit(ctx, c, user, false, false)
			if err != nil || !admitted.Admitted {
				t.Fatalf("admitted: %+v, %v", admitted, err)
			}
			if took := time.Since(asked); took > 30*time.Second {
				t.Errorf("admitted after %s", took)
			}
			harness.KeyIs(t, e, admitted.Engine.APIKey, true)
			shown, err := c.Engine(ctx, user)
			if err != nil || shown.Status != "running" {
				t.Fatalf("it is %+v, %v", shown, err)
			}
			harness.KeyIs(t, e, shown.APIKey, true)
			if tc.end != nil {
				if err := tc.end(c, user); err != nil {
					t.Fatal(err)
				}
				if name != "Start" {
					if _, err := c.Start(ctx, user); err != nil {
						t.Fatal(err)
					}
				}
				now := harness.IsNow(t, c, user, "running", "")
				if now.APIKey == e.APIKey {
					t.Error("it has the old key")
				}
				harness.KeyIs(t, now, now.APIKey, true)
				harness.KeyIs(t, now, e.APIKey, false)
				if err := harness.Export(t, now, now.APIKey).Knows(user); err != nil {
					t.Error(err)
				}
			}
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Fatal(err)
			}
			if left := harness.OpenStores(t, harness.Shared).Traces(e.EngineID); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// An engine that breaks the contract of the key proof is refused, with what to change. If
// its product names a path that requires the key, it boots and accepts new keys.
func TestKeyProofContract(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx := t.Context()
	for image, says := range map[string]string{
		"reference-engine.route-first": "returned 404 without a key",
		"reference-engine.unknown-401": "returned 401 with the engine's own key",
	} {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			p, err := r.Admin().RegisterProduct(ctx, "p-"+strings.NewReplacer("reference-engine.", "").Replace(image), "Test product", &client.Policy{EngineImage: image})
			if err != nil {
				t.Fatal(err)
			}
			c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
			failed := harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "u", "")), 502, "ENGINE_BOOT_FAILED")
			for _, what := range []string{says, "/.orch/key-proof", "key_proof_path"} {
				if !strings.Contains(failed.Message, what) {
					t.Errorf("it got %q, without %q", failed.Message, what)
				}
			}
			harness.AwaitEngine(t, c, "u", "failed", "key_proof")
			if _, err := r.Admin().SetPolicy(ctx, p.ProductID, client.Policy{EngineImage: image, KeyProofPath: "/info"}); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, "it is started", func() error { return harness.ErrOf(c.Start(ctx, "u")) })
			e := harness.IsNow(t, c, "u", "running", "")
			key, err := c.RotateKey(ctx, "u")
			if err != nil {
				t.Fatal(err)
			}
			harness.KeyIs(t, e, key, true)
			harness.KeyIs(t, e, e.APIKey, false)
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}
