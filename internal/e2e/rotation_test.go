package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// keyIs says whether an engine accepts a key.
func keyIs(t *testing.T, e *client.Engine, key string, want bool) {
	t.Helper()
	status, err := engineCall(t.Context(), e, key, http.MethodGet, "/info", nil, nil)
	if err != nil || (status == http.StatusOK) != want {
		t.Errorf("the engine answers %d, %v; that it accepts the key: want %t", status, err, want)
	}
}

// An engine that does not take its new key: the rotation is not confirmed and goes on in
// the background. Meanwhile callers get the key that the engine accepts, and a stop, a
// start or a destroy ends it: the next process has the new key.
func TestRotationIsNotConfirmed(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, map[string]string{
		"ORCH_ENGINE_KEY_RELOAD": "signal", "ORCH_ENGINE_IMAGE": "reference-engine.no-reload", "ORCH_BOOT_TIMEOUT_S": "10", "ORCH_VOLUME_POOL": "3",
	})
	c, ctx := r.product(t, nil), t.Context()
	both := r.product(t, map[string]any{"engine_image": "reference-engine.two-keys"})
	for name, tc := range map[string]struct {
		c    *client.Client
		says string
		end  func(*client.Client, string) error
	}{
		"Stop":    {c, "goes on with the old key", func(c *client.Client, user string) error { return second(c.Stop(ctx, user)) }},
		"Start":   {c, "goes on with the old key", func(c *client.Client, user string) error { return second(c.Start(ctx, user)) }},
		"TwoKeys": {both, "and the old one as well", func(c *client.Client, user string) error { return second(c.Stop(ctx, user)) }},
		"Destroy": {c, "goes on with the old key", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, user := tc.c, strings.ToLower(name)
			e, err := c.Provision(ctx, user, "")
			if err != nil {
				t.Fatal(err)
			}
			remember(t, e, e.APIKey, user)
			refused := wantCode(t, second(c.RotateKey(ctx, user)), 504, "ROTATION_UNCONFIRMED")
			if !strings.Contains(refused.Message, tc.says) {
				t.Errorf("it is told %q, want %q", refused.Message, tc.says)
			}
			wantCode(t, second(c.RotateKey(ctx, user)), 409, "ENGINE_BUSY")
			asked := time.Now()
			admitted, err := admit(ctx, c, user, false, false)
			if err != nil || !admitted.Admitted {
				t.Fatalf("admitted: %+v, %v", admitted, err)
			}
			if took := time.Since(asked); took > 30*time.Second {
				t.Errorf("admitted after %s", took)
			}
			keyIs(t, e, admitted.Engine.APIKey, true)
			shown, err := c.Engine(ctx, user)
			if err != nil || shown.Status != "running" {
				t.Fatalf("it is %+v, %v", shown, err)
			}
			keyIs(t, e, shown.APIKey, true)
			if tc.end != nil {
				if err := tc.end(c, user); err != nil {
					t.Fatal(err)
				}
				if name != "Start" {
					if _, err := c.Start(ctx, user); err != nil {
						t.Fatal(err)
					}
				}
				now := isNow(t, c, user, "running", "")
				if now.APIKey == e.APIKey {
					t.Error("it has the old key")
				}
				keyIs(t, now, now.APIKey, true)
				keyIs(t, now, e.APIKey, false)
				if err := export(t, now, now.APIKey).knows(user); err != nil {
					t.Error(err)
				}
			}
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Fatal(err)
			}
			if left := openStores(t, shared).traces(e.EngineID); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// An engine that breaks the contract of the proof is refused with what to mend; where
// its product names a path of it that needs a key, it boots and takes new keys.
func TestKeyProofContract(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx := t.Context()
	for image, says := range map[string]string{
		"reference-engine.route-first": "answers 404 without a key",
		"reference-engine.unknown-401": "answers 401 with the engine's own key",
	} {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			p, err := r.admin().RegisterProduct(ctx, "p-"+strings.NewReplacer("reference-engine.", "").Replace(image), "Test product", &client.Policy{EngineImage: image})
			if err != nil {
				t.Fatal(err)
			}
			c := &client.Client{BaseURL: r.url, PlatformKey: p.PlatformAPIKey}
			failed := wantCode(t, second(c.Provision(ctx, "u", "")), 502, "ENGINE_BOOT_FAILED")
			for _, what := range []string{says, "/.orch/key-proof", "key_proof_path"} {
				if !strings.Contains(failed.Message, what) {
					t.Errorf("it is told %q, without %q", failed.Message, what)
				}
			}
			awaitEngine(t, c, "u", "failed", "key_proof")
			if _, err := r.admin().SetPolicy(ctx, p.ProductID, client.Policy{EngineImage: image, KeyProofPath: "/info"}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is started", func() error { return second(c.Start(ctx, "u")) })
			e := isNow(t, c, "u", "running", "")
			key, err := c.RotateKey(ctx, "u")
			if err != nil {
				t.Fatal(err)
			}
			keyIs(t, e, key, true)
			keyIs(t, e, e.APIKey, false)
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}
