package server

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
)

// TestListAllEngines: the admin key, wherever it comes with, decides whose list it is; wrong
// parameters are refused before anything is read.
func TestListAllEngines(t *testing.T) {
	s := newCutOff(t)
	want(t, s.send("GET", "/engines", "", "X-Admin-Key", "wrong", "X-Platform-Key", "pk"), 401, engine.InvalidAdminKey)
	want(t, s.send("GET", "/engines", "", "X-Platform-Key", adminKey), 401, engine.InvalidPlatformKey)
	for query, names := range map[string]string{
		"offset=1": "offset", "status=dead": "status", "limit=0": "limit", "limit=1001": "limit", "user_id=": "user_id", "user_id=" + strings.Repeat("x", 257): "user_id",
		"node=x": "node", "product_id=a&product_id=b": "product_id",
	} {
		if message := want(t, s.send("GET", "/engines?"+query, "", "X-Admin-Key", adminKey), 400, engine.InvalidRequest); !strings.Contains(message, names) {
			t.Errorf("%s: message %q does not name %q", query, message, names)
		}
	}
	for _, query := range []string{"", "?user_id=a%2F..%2Fb", "?product_id=p&status=failed&engine_id=e&user_id=u&node_id=n&reason=crashed&limit=1000"} {
		want(t, s.send("GET", "/engines"+query, "", "X-Admin-Key", adminKey, "X-Platform-Key", "pk"), 503, engine.BackendUnavailable)
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d calls to the agents", n)
	}
	// What cannot be an engine_id is not read.
	for _, id := range []string{"e", "..", "%2F", "a%2Fb", strings.Repeat("A", 26)} {
		want(t, s.send("GET", "/engines/by-id/"+id, "", "X-Admin-Key", adminKey), 404, engine.EngineNotFound)
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d calls to the agents", n)
	}
}
