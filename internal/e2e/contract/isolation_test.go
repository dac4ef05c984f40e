package contract

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// With its key, a product gets the same responses about another product's users as about
// users that do not exist, and changes nothing of theirs.
func TestProductsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	const prefix = "isolation/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "2"})
	a, b := r.Product(t, harness.AnyImage), r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	// Users of A in each state that an engine can keep.
	running, err := a.Provision(ctx, "running", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Provision(ctx, "stopped", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(a.Provision(ctx, "failed", "reference-engine.exit-at-start")), 502, "ENGINE_BOOT_FAILED")
	before, rows := s.Census(prefix), versions(s, prefix+"engines/")

	for _, o := range harness.Operations {
		switch {
		case strings.Contains(o.Path, "{user}"):
			nobody := r.Send(t, o.Of("nobody", ""), b.PlatformKey)
			for _, user := range []string{"running", "stopped", "failed"} {
				got := r.Send(t, o.Of(user, ""), b.PlatformKey)
				if got.Status != nobody.Status || got.Code != nobody.Code || got.Message != nobody.Message || o.ID == "admit" && got.Text != nobody.Text {
					t.Errorf("%s of another product's %s engine: %d %s, of nobody's: %d %s", o.ID, user, got.Status, got.Text, nobody.Status, nobody.Text)
				}
			}
		case o.Key == harness.AdminHeader:
			// A platform key gives no access to the admin's calls.
			r.Send(t, o.Of("", harness.NoProduct), b.PlatformKey, harness.PlatformHeader, b.PlatformKey).Want(t, o, 401, "INVALID_ADMIN_KEY")
		}
	}
	if got := harness.ListEngines(t, b, ""); got.Total != 0 || len(got.Engines) != 0 {
		t.Errorf("B lists %+v", got)
	}
	for _, state := range []string{"running", "stopped", "failed"} {
		if got := harness.ListEngines(t, b, "?status="+state); got.Total != 0 {
			t.Errorf("B lists %d %s engines", got.Total, state)
		}
	}
	if st, err := statusOf(ctx, b); err != nil || st.Total != 0 || st.Unhealthy != 0 || st.Health != "ok" {
		t.Errorf("B's status is %+v, %v", st, err)
	}
	var numbers map[string]float64
	if err := b.Do(ctx, http.MethodGet, "/metrics", nil, &numbers); err != nil {
		t.Fatal(err)
	}
	for name, n := range numbers {
		if n != 0 {
			t.Errorf("B's %s is %v", name, n)
		}
	}
	for _, query := range []string{"?user_id=running", "?action=provision", "?action=stop"} {
		got, _ := harness.AuditLog(t, b, query)
		got = slices.DeleteFunc(got, func(e client.AuditEntry) bool { return e.Action == "admit_denied" }) // B's own rows
		if len(got) != 0 {
			t.Errorf("B's audit log with %s: %+v", query, got)
		}
	}
	// Cursors of A's lists are invalid for B.
	engines, log := harness.ListEngines(t, a, "?limit=1").Next, ""
	if _, log = harness.AuditLog(t, a, "?limit=1"); engines == "" || log == "" {
		t.Fatal("A's lists have one page")
	}
	harness.WantCode(t, b.Do(ctx, http.MethodGet, "/engines?cursor="+url.QueryEscape(engines), nil, nil), 400, "INVALID_REQUEST")
	harness.WantCode(t, b.Do(ctx, http.MethodGet, "/audit?cursor="+url.QueryEscape(log), nil, nil), 400, "INVALID_REQUEST")
	harness.WantCode(t, b.Do(ctx, http.MethodGet, "/audit?product_id="+harness.NoProduct, nil, nil), 400, "INVALID_REQUEST")

	if after := versions(s, prefix+"engines/"); fmt.Sprint(after) != fmt.Sprint(rows) {
		t.Errorf("A's rows were %v and are %v", rows, after)
	}
	s.WantCensus(prefix, before)

	// The same user_id at B is another user; destroying its engine does not affect A's.
	theirs, err := b.Provision(ctx, "running", "")
	if err != nil || theirs.EngineID == running.EngineID || theirs.APIKey == running.APIKey || theirs.URL == running.URL {
		t.Fatalf("B's own engine: %+v, %v", theirs, err)
	}
	if status, err := harness.EngineCall(ctx, running, theirs.APIKey, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusUnauthorized {
		t.Errorf("A's engine responds to B's key with %d, %v", status, err)
	}
	for _, change := range []func() error{
		func() error { return harness.ErrOf(b.RotateKey(ctx, "running")) }, func() error { return harness.ErrOf(b.Stop(ctx, "running")) }, func() error { return harness.ErrOf(b.Destroy(ctx, "running")) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := a.Engine(ctx, "running"); err != nil || got.EngineID != running.EngineID || got.APIKey != running.APIKey || got.Status != "running" {
		t.Errorf("A's engine is %+v, %v", got, err)
	}
	if after := versions(s, prefix+"engines/"); fmt.Sprint(after) != fmt.Sprint(rows) {
		t.Errorf("A's rows were %v and are %v", rows, after)
	}
	for _, user := range []string{"running", "stopped", "failed"} {
		if _, err := a.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// versions returns the index of every key below a prefix, which shows changes.
func versions(s *harness.Stores, prefix string) map[string]uint64 {
	s.T.Helper()
	pairs, _, err := s.Consul.KV().List(prefix, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	versions := make(map[string]uint64, len(pairs))
	for _, p := range pairs {
		versions[p.Key] = p.ModifyIndex
	}
	return versions
}
