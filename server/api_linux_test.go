package server_test

import (
	"strings"
	"testing"
)

// TestOnRealAgents holds what needs an engine, or a product at least, to be
// seen. The engine's own life is tested in internal/e2e.
func TestOnRealAgents(t *testing.T) {
	a := startAPI(t)

	t.Run("keys are stored nowhere", func(t *testing.T) {
		a.call(t, "POST", "/products/register", `{"slug": "q", "display_name": "Q"}`).noStore(t, "platform_api_key")
		provisioned := a.call(t, "POST", "/engines/provision", `{"user_id": "u"}`)
		provisioned.noStore(t, "api_key")
		got := a.call(t, "GET", "/engines/u", "")
		got.noStore(t, "api_key")
		if got.field("api_key") != provisioned.field("api_key") {
			t.Error("GET tells another key")
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

	t.Run("user_ids in paths", func(t *testing.T) {
		for user, status := range map[string]int{
			"provision": 404, "a%2Fb": 404, "%2F%2F": 404, "with%20space": 404, "%F0%9F%A6%8A": 404, "..": 404, ".": 404, "%2E%2E": 404, "start": 404,
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
