package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestUserIDs runs engines of users with difficult ids through their life: no part of an id
// may be parsed, interpolated or split anywhere.
func TestUserIDs(t *testing.T) { harness.EachDriver(t, testUserIDs) }

func testUserIDs(t *testing.T, d harness.Driver) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, d.With(map[string]string{"ORCH_VOLUME_POOL": "4"}))
	c := r.Product(t, nil)
	other := r.Product(t, nil)
	for _, user := range []string{
		"provision", "a/b", "a%2Fb", "with space", "🦊 and ü", "...", ".a/..b", "auth0|123", "me@example.com", "a+b", "?q=1&x#y", "start", "user/start",
		strings.Repeat("x", 256), strings.Repeat("é", 128),
		`${node.unique.id} ${env["HOME"]} %{if true}x%{endif} {{ key "x" }} {{ env "HOME" }} "quoted" 'single' \ backslash`,
		`"; rm -rf / #`, "<script>alert(1)</script> [x](javascript:alert(1))",
	} {
		t.Run(user[:min(len(user), 20)], func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			e, err := c.Provision(ctx, user, "")
			if err != nil {
				t.Fatal(err)
			}
			if e.UserID != user {
				t.Fatalf("user_id came back as %q", e.UserID)
			}
			got, err := c.Engine(ctx, user)
			if err != nil || got.EngineID != e.EngineID || got.UserID != user {
				t.Fatalf("GET: %+v, %v", got, err)
			}
			// Another product's user of that name has no engine.
			_, err = other.Engine(ctx, user)
			harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
			_, err = other.Destroy(ctx, user)
			harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
			job, _, err := harness.OpenStores(t, harness.Shared).Nomad.Jobs().Info("engine-"+e.EngineID, nil)
			if err != nil {
				t.Fatal(err)
			}
			// Meta is interpolated, so it has the user only as a hash.
			if sum := sha256.Sum256([]byte(user)); len(job.Meta) != 5 || job.Meta["deployment_id"] == "" || job.Meta["user"] != hex.EncodeToString(sum[:]) {
				t.Errorf("job meta is %v", job.Meta)
			}
			if _, err := c.Stop(ctx, user); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Start(ctx, user); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Fatal(err)
			}
			if left := harness.OpenStores(t, harness.Shared).Traces(e.EngineID); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
	for name, user := range map[string]string{"empty": "", "too long": strings.Repeat("x", 257), "control": "a\nb", "DEL": "a\x7fb", "dots": "..", "dots inside": "x/../victim"} {
		t.Run("Err "+name, func(t *testing.T) {
			_, err := c.Provision(t.Context(), user, "")
			harness.WantCode(t, err, 400, "INVALID_REQUEST")
			if user != "" {
				_, err = c.Engine(t.Context(), user)
				harness.WantCode(t, err, 400, "INVALID_REQUEST")
			}
		})
	}
}

func TestRequestsAreRefused(t *testing.T) {
	t.Parallel()
	const prefix = "refused/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	c := r.Product(t, nil)
	ctx := t.Context()
	before := harness.OpenStores(t, harness.Shared).Census(prefix)["rows"]

	t.Run("platform key", func(t *testing.T) {
		for _, key := range []string{"", "nonsense", "pk-sept-" + strings.Repeat("A", 43), harness.AdminKey} {
			bad := &client.Client{BaseURL: r.URL, PlatformKey: key}
			_, err := bad.Provision(ctx, "u", "")
			harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
			_, err = bad.Engine(ctx, "u")
			harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
			harness.WantCode(t, bad.Do(ctx, http.MethodPost, "/engines/provision", "no object", nil), 401, "INVALID_PLATFORM_KEY")
		}
	})
	t.Run("admin key", func(t *testing.T) {
		for _, key := range []string{"", "wrong", c.PlatformKey} {
			_, err := (&client.Client{BaseURL: r.URL, AdminKey: key}).RegisterProduct(ctx, "slug", "name", nil)
			harness.WantCode(t, err, 401, "INVALID_ADMIN_KEY")
		}
	})
	admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	t.Run("register", func(t *testing.T) {
		if _, err := admin.RegisterProduct(ctx, "taken", "Taken", nil); err != nil {
			t.Fatal(err)
		}
		_, err := admin.RegisterProduct(ctx, "taken", "Taken again", nil)
		harness.WantCode(t, err, 409, "PRODUCT_SLUG_EXISTS")
		for _, slug := range []string{"", "-x", "Upper", "a b", strings.Repeat("x", 41), "ü"} {
			_, err := admin.RegisterProduct(ctx, slug, "name", nil)
			harness.WantCode(t, err, 400, "INVALID_REQUEST")
		}
		for field, value := range map[string]any{"max_engines": -1, "no_such_field": 1, "memory_mb": "many", "allowed_images": []string{"["}, "sleep_mode": "nap", "idle_timeout_s": 1.5, "rate_limit_rpm": -5} {
			err := admin.Do(ctx, http.MethodPost, "/products/register", map[string]any{"slug": "slug", "display_name": "name", "policy": map[string]any{field: value}}, nil)
			if e := harness.WantCode(t, err, 400, "INVALID_REQUEST"); !strings.Contains(e.Message, field) {
				t.Errorf("message %q does not name %s", e.Message, field)
			}
		}
	})
	t.Run("body", func(t *testing.T) {
		for _, body := range []any{map[string]any{"user_id": 5}, map[string]any{"user_id": "u", "typo": 1}, []int{1}, "text", nil, map[string]any{}} {
			harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/provision", body, nil), 400, "INVALID_REQUEST")
		}
		harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/provision", map[string]any{"user_id": strings.Repeat("x", 70<<10)}, nil), 413, "REQUEST_TOO_LARGE")
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, r.URL+"/engines/provision", strings.NewReader(`user_id=u`))
		req.Header.Set("X-Platform-Key", c.PlatformKey)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("a form gets %d, want 415", resp.StatusCode)
		}
	})
	t.Run("quota of zero", func(t *testing.T) {
		_, err := r.Product(t, map[string]any{"max_engines": 0}).Provision(ctx, "u", "")
		harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	})
	t.Run("routes", func(t *testing.T) {
		harness.WantCode(t, c.Do(ctx, http.MethodGet, "/no/such", nil, nil), 404, "NOT_FOUND")
		harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/u/no-such-action", nil, nil), 404, "NOT_FOUND")
		harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/u", nil, nil), 405, "METHOD_NOT_ALLOWED")
		harness.WantCode(t, c.Do(ctx, http.MethodPut, "/products/register", nil, nil), 405, "METHOD_NOT_ALLOWED")
		for _, call := range []func() error{
			func() error { return harness.ErrOf(c.Start(ctx, "nobody")) }, func() error { return harness.ErrOf(c.Stop(ctx, "nobody")) },
			func() error { return harness.ErrOf(c.RotateKey(ctx, "nobody")) }, func() error { return harness.ErrOf(c.Destroy(ctx, "nobody")) },
		} {
			harness.WantCode(t, call(), 404, "ENGINE_NOT_FOUND")
		}
	})
	if after := harness.OpenStores(t, harness.Shared).Census(prefix)["rows"]; after != before {
		t.Errorf("refused requests left %d rows", after-before)
	}
	health, err := c.Health(ctx)
	if err != nil || health.Status != "ok" {
		t.Errorf("health: %+v, %v", health, err)
	}
	for _, name := range []string{"nomad", "consul", "vault", "audit"} {
		if health.Subsystems[name] != "ok" {
			t.Errorf("health does not name %s: %v", name, health)
		}
	}
	if err := errors.Join(c.Live(ctx), c.Ready(ctx)); err != nil {
		t.Error(err)
	}
}
