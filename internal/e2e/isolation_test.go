package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

// With its key, a product gets the same answers about another product's users as
// about nobody's, and changes nothing of theirs.
func TestProductsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	const prefix = "isolation/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "2"})
	a, b := r.product(t, anyImage), r.product(t, nil)
	ctx, s := t.Context(), openStores(t, shared)
	// Users of A in each state that its engines keep.
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
	wantCode(t, second(a.Provision(ctx, "failed", "reference-engine.exit-at-start")), 502, "ENGINE_BOOT_FAILED")
	before, rows := s.census(prefix), s.versions(prefix+"engines/")

	for _, o := range operations {
		switch {
		case strings.Contains(o.path, "{user}"):
			nobody := r.send(t, o.of("nobody", ""), b.PlatformKey)
			for _, user := range []string{"running", "stopped", "failed"} {
				got := r.send(t, o.of(user, ""), b.PlatformKey)
				if got.status != nobody.status || got.code != nobody.code || got.message != nobody.message || o.id == "admit" && got.text != nobody.text {
					t.Errorf("%s of another product's %s engine: %d %s, of nobody's: %d %s", o.id, user, got.status, got.text, nobody.status, nobody.text)
				}
			}
		case o.key == admin:
			// A platform key opens nothing of the admin's.
			r.send(t, o.of("", noProduct), b.PlatformKey, platform, b.PlatformKey).want(t, o, 401, "INVALID_ADMIN_KEY")
		}
	}
	if got := list(t, b, ""); got.Total != 0 || len(got.Engines) != 0 {
		t.Errorf("B lists %+v", got)
	}
	for _, state := range []string{"running", "stopped", "failed"} {
		if got := list(t, b, "?status="+state); got.Total != 0 {
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
		got, _ := auditLog(t, b, query)
		got = slices.DeleteFunc(got, func(e client.AuditEntry) bool { return e.Action == "admit_denied" }) // B's own
		if len(got) != 0 {
			t.Errorf("B's audit log with %s: %+v", query, got)
		}
	}
	// Places in A's lists are none in B's.
	engines, log := list(t, a, "?limit=1").Next, ""
	if _, log = auditLog(t, a, "?limit=1"); engines == "" || log == "" {
		t.Fatal("A's lists have one page")
	}
	wantCode(t, b.Do(ctx, http.MethodGet, "/engines?cursor="+url.QueryEscape(engines), nil, nil), 400, "INVALID_REQUEST")
	wantCode(t, b.Do(ctx, http.MethodGet, "/audit?cursor="+url.QueryEscape(log), nil, nil), 400, "INVALID_REQUEST")
	wantCode(t, b.Do(ctx, http.MethodGet, "/audit?product_id="+noProduct, nil, nil), 400, "INVALID_REQUEST")

	if after := s.versions(prefix + "engines/"); fmt.Sprint(after) != fmt.Sprint(rows) {
		t.Errorf("A's rows were %v and are %v", rows, after)
	}
	s.wantCensus(prefix, before)

	// The same user_id at B is another user, whose end is not A's.
	theirs, err := b.Provision(ctx, "running", "")
	if err != nil || theirs.EngineID == running.EngineID || theirs.APIKey == running.APIKey || theirs.URL == running.URL {
		t.Fatalf("B's own engine: %+v, %v", theirs, err)
	}
	if status, err := engineCall(ctx, running, theirs.APIKey, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusUnauthorized {
		t.Errorf("A's engine answers B's key with %d, %v", status, err)
	}
	for _, change := range []func() error{
		func() error { return second(b.RotateKey(ctx, "running")) }, func() error { return second(b.Stop(ctx, "running")) }, func() error { return second(b.Destroy(ctx, "running")) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := a.Engine(ctx, "running"); err != nil || got.EngineID != running.EngineID || got.APIKey != running.APIKey || got.Status != "running" {
		t.Errorf("A's engine is %+v, %v", got, err)
	}
	if after := s.versions(prefix + "engines/"); fmt.Sprint(after) != fmt.Sprint(rows) {
		t.Errorf("A's rows were %v and are %v", rows, after)
	}
	for _, user := range []string{"running", "stopped", "failed"} {
		if _, err := a.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// versions is the index of every key below a prefix: what changed shows.
func (s *stores) versions(prefix string) map[string]uint64 {
	s.t.Helper()
	pairs, _, err := s.consul.KV().List(prefix, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	versions := make(map[string]uint64, len(pairs))
	for _, p := range pairs {
		versions[p.Key] = p.ModifyIndex
	}
	return versions
}
