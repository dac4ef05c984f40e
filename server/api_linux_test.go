package server_test

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/scheduler"
)

// TestOnRealAgents tests what needs an engine, or at least a product. The life of an engine
// is tested in internal/e2e.
func TestOnRealAgents(t *testing.T) {
	t.Parallel()
	a := startAPI(t)

	t.Run("keys are stored nowhere", func(t *testing.T) {
		a.call(t, "POST", "/products/register", `{"slug": "q", "display_name": "Q"}`).noStore(t, "platform_api_key")
		provisioned := a.call(t, "POST", "/engines/provision", `{"user_id": "u"}`)
		provisioned.noStore(t, "api_key")
		got := a.call(t, "GET", "/engines/u", "")
		got.noStore(t, "api_key")
		if got.field("api_key") != provisioned.field("api_key") {
			t.Error("GET returns another key")
		}
		a.call(t, "POST", "/engines/u/rotate-key", "").noStore(t, "new_api_key")
		for _, c := range []struct{ method, path, status string }{
			{"POST", "/engines/u/stop", "stopped"}, {"POST", "/engines/u/start", "running"}, {"DELETE", "/engines/u", "destroyed"},
		} {
			answer := a.call(t, c.method, c.path, "")
			answer.want(t, 200, "")
			if answer.field("status") != c.status || strings.Contains(answer.text, "k-sept-") {
				t.Errorf("%s: %s", c.path, answer.text)
			}
		}
	})

	t.Run("the registry and what is quarantined", func(t *testing.T) { testRegistry(t, a) })

	t.Run("bodies are refused everywhere", func(t *testing.T) {
		for _, c := range []struct{ method, path string }{
			{"POST", "/engines/provision"}, {"POST", "/engines/v/start"}, {"POST", "/engines/v/stop"}, {"POST", "/engines/v/rotate-key"}, {"DELETE", "/engines/v"}, {"POST", "/products/register"},
		} {
			for body, status := range map[string]int{
				`{"user_id": "v", "typo": 1}`: 400, `{"user_id": "v", "user_id": "v"}`: 400, `{"user_id": "v"} {}`: 400, "{\"user_id\": \"v\xff\"}": 400,
				`{"typo": 1}`: 400, `[]`: 400, `null`: 400, `{`: 400, "\u00a0": 400, `{"user_id": 5}`: 400, strings.Repeat(" ", 64<<10+1): 413,
			} {
				code := map[int]string{400: "INVALID_REQUEST", 413: "REQUEST_TOO_LARGE"}[status]
				a.call(t, c.method, c.path, body).want(t, status, code)
			}
		}
		a.call(t, "GET", "/engines/v", "").want(t, 404, "ENGINE_NOT_FOUND")
	})

	t.Run("snapshots of nobody, and bad bodies", func(t *testing.T) { testSnapshotCalls(t, a) })

	t.Run("user_ids with dot segments", func(t *testing.T) { testDotSegments(t, a) })

	t.Run("behind proxies", func(t *testing.T) { testProxies(t, a) })

	t.Run("user_ids in paths", func(t *testing.T) {
		for user, status := range map[string]int{
			"provision": 404, "a%2Fb": 404, "%2F%2F": 400, "a%2F": 400, "with%20space": 404, "%F0%9F%A6%8A": 404, "...": 404, "start": 404,
			strings.Repeat("x", 256): 404, strings.Repeat("%C3%A9", 128): 404, "%E2%80%AE": 404,
			strings.Repeat("x", 257): 400, strings.Repeat("%C3%A9", 129): 400, "%00": 400, "a%0Ab": 400, "%7F": 400, "%C2%85": 400, "%FF": 400, "%ED%A0%80": 400,
		} {
			code := map[int]string{400: "INVALID_REQUEST", 404: "ENGINE_NOT_FOUND"}[status]
			a.call(t, "GET", "/engines/"+user, "").want(t, status, code)
			a.call(t, "DELETE", "/engines/"+user, "").want(t, status, code)
			for _, action := range []string{"start", "stop", "rotate-key"} {
				a.call(t, "POST", "/engines/"+user+"/"+action, "").want(t, status, code)
			}
		}
	})
}

// testDotSegments: an id that clients or proxies would remove from a path is refused
// everywhere. The admin can read and destroy an engine that has such an id from an earlier
// version.
func testDotSegments(t *testing.T, a *api) {
	product := map[string]string{"X-Platform-Key": a.key}
	refused := func(t *testing.T, got answer) {
		t.Helper()
		got.want(t, 400, "INVALID_REQUEST")
		if !strings.Contains(got.text, `user_id has a segment \".\" or \"..\" between slashes`) {
			t.Errorf("the message is %s", got.text)
		}
	}
	for _, user := range []string{".", "..", "%2E", "%2e%2E", "x%2F..%2Fvictim", "..%2Fvictim", "x%2F.", "x%2F%2E%2Fy"} {
		path := "/engines/" + user
		for _, c := range [][2]string{{"GET", path}, {"DELETE", path}, {"POST", path + "/start"}, {"POST", path + "/stop"}, {"POST", path + "/rotate-key"}, {"POST", path + "/admit"}, {"POST", path + "/keep-awake"},
			{"GET", path + "/snapshots"}, {"POST", path + "/snapshots"}, {"DELETE", path + "/snapshots/s"}, {"POST", path + "/restore"}, {"POST", path + "/fork"}} {
			refused(t, a.callWith(t, c[0], c[1], "", product))
		}
		refused(t, a.callWith(t, "GET", "/audit?user_id="+user, "", product))
		refused(t, a.call(t, "POST", path+"/start", "")) // not even by the admin
	}
	for _, body := range []string{`{"user_id": ".."}`, `{"user_id": "x/../victim"}`} {
		refused(t, a.call(t, "POST", "/engines/provision", body))
		refused(t, a.call(t, "POST", "/quarantine/e/adopt", `{"product_id": "p", `+body[1:]))
	}

	const old, path = "x/../victim", "/engines/x%2F..%2Fvictim"
	c, err := a.svc.Scheduler.Authenticate(t.Context(), a.key, old)
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := a.svc.Scheduler.Provision(t.Context(), c, scheduler.ProvisionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, a.callWith(t, "GET", path, "", product))
	refused(t, a.callWith(t, "DELETE", path, "", map[string]string{"X-Platform-Key": a.key, "X-Admin-Key": "wrong"}))
	if got := a.call(t, "GET", path, ""); got.status != 200 || got.field("engine_id") != made.EngineID || got.field("user_id") != old {
		t.Errorf("the admin reads %d %s", got.status, got.text)
	}
	if got := a.call(t, "DELETE", path, ""); got.status != 200 || got.field("engine_id") != made.EngineID {
		t.Errorf("the admin destroys: %d %s", got.status, got.text)
	}
	if got := a.callWith(t, "GET", "/audit?action=destroy&user_id=x%2F..%2Fvictim", "", map[string]string{"X-Admin-Key": adminKey}); !strings.Contains(got.text, made.EngineID) {
		t.Errorf("the admin's audit log: %d %s", got.status, got.text)
	}
}

// testSnapshotCalls: the calls about snapshots refuse what is wrong before anything is done,
// and there are none of a user without an engine.
func testSnapshotCalls(t *testing.T, a *api) {
	for call, bad := range map[string][][2]string{
		"POST /engines/v/snapshots":     {{`{"label": 5}`, "label"}, {`{"label": null}`, "label"}, {`{"label": "` + strings.Repeat("x", 101) + `"}`, "100"}, {`{"label": "a\u0007"}`, "control"}, {`{"snapshot_id": "s"}`, "snapshot_id"}},
		"POST /engines/v/restore":       {{`{"snapshot_id": 5}`, "snapshot_id"}, {`{"snapshot_id": ""}`, "newest"}, {`{"label": "x"}`, "label"}},
		"POST /engines/v/fork":          {{`{}`, "user_id"}, {`{"user_id": ""}`, "user_id"}, {`{"user_id": "a\u0000"}`, "user_id"}, {`{"user_id": "a/../b"}`, "user_id"}, {`{"user_id": "w", "snapshot_id": ""}`, "snapshot_id"}, {`{"user_id": "w", "typo": 1}`, "typo"}},
		"DELETE /engines/v/snapshots/s": {{`{"label": "x"}`, "label"}},
	} {
		method, path, _ := strings.Cut(call, " ")
		for _, b := range bad {
			got := a.call(t, method, path, b[0])
			got.want(t, 400, "INVALID_REQUEST")
			if !strings.Contains(got.text, b[1]) {
				t.Errorf("%s with %s: %s", call, b[0], got.text)
			}
		}
		a.call(t, method, path, strings.Repeat(" ", 64<<10+1)).want(t, 413, "REQUEST_TOO_LARGE")
		body := map[string]string{"POST /engines/v/fork": `{"user_id": "w"}`}[call]
		a.call(t, method, path, body).want(t, 404, "ENGINE_NOT_FOUND")
		a.call(t, method, path+"?typo=1", body).want(t, 400, "INVALID_REQUEST")
	}
	a.call(t, "GET", "/engines/v/snapshots", "").want(t, 404, "ENGINE_NOT_FOUND")
	a.call(t, "GET", "/engines/by-id/snapshots", "").want(t, 404, "ENGINE_NOT_FOUND") // of the user "by-id"
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "cursor=", "offset=1"} {
		a.call(t, "GET", "/engines/v/snapshots?"+query, "").want(t, 400, "INVALID_REQUEST")
	}
}
