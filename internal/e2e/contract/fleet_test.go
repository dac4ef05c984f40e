package contract

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func users(p harness.EnginePage) []string {
	var names []string
	for _, e := range p.Engines {
		names = append(names, e["user_id"].(string))
	}
	return names
}

func TestFleet(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "4"})
	c := all[0].Product(t, harness.AnyImage)
	stranger := all[0].Product(t, nil)
	ctx := t.Context()
	var want []string
	for i := range 5 {
		user := fmt.Sprint("user-", i)
		if _, err := c.Provision(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
		want = append(want, user)
		// A replica's lists immediately contain what the same replica did.
		if got := harness.ListEngines(t, c, ""); got.Total != i+1 || !slices.Equal(users(got), want) {
			t.Fatalf("after %s: %v of %d", user, users(got), got.Total)
		}
	}
	if _, err := c.Stop(ctx, "user-3"); err != nil {
		t.Fatal(err)
	}
	_, err := c.Provision(ctx, "bad", "reference-engine.exit-at-start")
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	want = append(want, "bad")

	for _, e := range harness.ListEngines(t, c, "").Engines {
		if _, shown := e["api_key"]; shown || e["engine_id"] == "" || e["created_at"] == "" || e["engine_version"] == "" {
			t.Errorf("listed as %v", e)
		}
		if (e["status"] == "failed") != (e["reason"] == "crashed") {
			t.Errorf("listed as %v", e)
		}
	}
	for query, want := range map[string][]string{
		"?limit=2": want[:2], "?limit=2&offset=3": want[3:5], "?offset=6": nil,
		"?status=running": {"user-0", "user-1", "user-2", "user-4"}, "?status=stopped": {"user-3"}, "?status=failed": {"bad"}, "?status=sleeping": nil,
	} {
		if got := harness.ListEngines(t, c, query); !slices.Equal(users(got), want) {
			t.Errorf("%s: got %v, want %v", query, users(got), want)
		}
	}
	if got := harness.ListEngines(t, c, "?status=running&limit=1"); got.Total != 4 {
		t.Errorf("total of the running is %d", got.Total)
	}
	// Pages by cursor are complete, and the last one has no cursor.
	var paged []string
	for e, err := range c.AllEngines(ctx, client.EngineFilter{Limit: 4}) {
		if err != nil {
			t.Fatal(err)
		}
		paged = append(paged, e.UserID)
	}
	if !slices.Equal(paged, want) {
		t.Errorf("by cursor: %v", paged)
	}
	// The other replica has it a moment later; another product sees none of it.
	harness.Eventually(t, "the other replica lists all", func() error {
		if got := users(harness.ListEngines(t, harness.At(c, all[1]), "")); !slices.Equal(got, want) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if got := harness.ListEngines(t, stranger, ""); got.Total != 0 || got.Engines == nil {
		t.Errorf("another product sees %+v", got)
	}

	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Total != 6 || len(status.ByStatus) != 6 || status.ByStatus["running"] != 4 || status.ByStatus["stopped"] != 1 ||
		status.ByStatus["failed"] != 1 || status.Health != "degraded" || status.UnhealthyCount != 1 {
		t.Errorf("status %+v", status)
	}
	for _, bad := range []string{"?limit=0", "?limit=1001", "?limit=x", "?offset=-1", "?status=dead", "?cursor=nonsense", "?cursor=x&offset=1", "?limt=5", "?limit=1&limit=2", "?status=%zz"} {
		harness.WantCode(t, c.Do(ctx, http.MethodGet, "/engines"+bad, nil, nil), 400, "INVALID_REQUEST")
	}
	for _, path := range []string{"/engines", "/status", "/metrics", "/audit"} {
		harness.WantCode(t, (&client.Client{BaseURL: all[0].URL}).Do(ctx, http.MethodGet, path, nil, nil), 401, "INVALID_PLATFORM_KEY")
	}
	for _, user := range want {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	if got := harness.ListEngines(t, c, ""); got.Total != 0 {
		t.Errorf("after all were destroyed: %v", users(got))
	}
}
