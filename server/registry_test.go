package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
)

// adminCalls are the calls about the registry and the quarantine.
var adminCalls = []struct{ method, path string }{
	{"GET", "/registry"}, {"GET", "/registry/recover"}, {"POST", "/registry/recover"}, {"POST", "/registry/rekey"},
	{"GET", "/quarantine"}, {"GET", "/nodes"}, {"GET", "/nodes/n/evacuate"}, {"POST", "/nodes/n/evacuate"}, {"DELETE", "/nodes/n/evacuate"}, {"GET", "/engines/by-id/abcdefghijklmnopqrstuvwxyz"}, {"POST", "/quarantine/e/adopt"}, {"DELETE", "/quarantine/e"},
	{"GET", "/stored-engines"}, {"POST", "/stored-engines/abcdefghijklmnopqrstuvwxyz/import"},
}

// TestRegistryIsTheAdmins: without the admin key the stores are not called; with it, an
// unavailable store is reported.
func TestRegistryIsTheAdmins(t *testing.T) {
	s := newCutOff(t)
	for _, c := range adminCalls {
		before := s.calls.Load()
		want(t, s.send(c.method, c.path, ""), 401, engine.InvalidAdminKey)
		want(t, s.send(c.method, c.path, "", "X-Platform-Key", adminKey), 401, engine.InvalidAdminKey)
		want(t, s.send(c.method, c.path+"?x=1", "", "X-Admin-Key", adminKey), 400, engine.InvalidRequest)
		if c.method != "GET" {
			want(t, s.send(c.method, c.path, `{"x": 1}`, "X-Admin-Key", adminKey), 400, engine.InvalidRequest)
		}
		if s.calls.Load() != before {
			t.Errorf("%s %s: a refused call reached the stores", c.method, c.path)
		}
		want(t, s.send(c.method, c.path, "", "X-Admin-Key", adminKey), 503, engine.BackendUnavailable)
	}
}

func TestAdoptBody(t *testing.T) {
	s := newCutOff(t)
	for body, names := range map[string]string{
		`{"product_id": "p"}`: "or neither", `{"user_id": "u"}`: "or neither", `{"product_id": "", "user_id": "u"}`: "product_id is empty",
		`{"product_id": "p", "user_id": ""}`: "user_id is empty", `{"product_id": "p", "user_id": "a\u0000"}`: "control character", `{"product": "p"}`: `"product"`,
	} {
		before := s.calls.Load()
		if message := want(t, s.send("POST", "/quarantine/e/adopt", body, "X-Admin-Key", adminKey), 400, engine.InvalidRequest); !strings.Contains(message, names) {
			t.Errorf("%s: message %q does not name %q", body, message, names)
		}
		if s.calls.Load() != before {
			t.Errorf("%s reached the stores", body)
		}
	}
	for _, body := range []string{"", "{}", `{"product_id": "p", "user_id": "a/b"}`} {
		want(t, s.send("POST", "/quarantine/e/adopt", body, "X-Admin-Key", adminKey), 503, engine.BackendUnavailable)
	}
}

// TestShowRegistry: empty fields are omitted, and a registry without a record is not
// reported as complete.
func TestShowRegistry(t *testing.T) {
	at := time.Date(2026, 11, 24, 6, 19, 47, 0, time.UTC)
	for name, c := range map[string]struct {
		status scheduler.RegistryStatus
		want   string
	}{
		"none": {
			scheduler.RegistryStatus{Deployment: &registry.Deployment{}},
			`{"deployment_id":"","registry_id":"","epoch":0,"state":"recovering","keys":"ok","keys_missing":0,"quarantined":0}`,
		},
		"ok": {
			scheduler.RegistryStatus{Deployment: &registry.Deployment{ID: "d", Registry: "r", Epoch: 3, State: registry.RegistryOK}},
			`{"deployment_id":"d","registry_id":"r","epoch":3,"state":"ok","keys":"ok","keys_missing":0,"quarantined":0}`,
		},
		"recovering": {
			scheduler.RegistryStatus{
				Deployment: &registry.Deployment{
					ID: "d", Registry: "r", Epoch: 3, State: registry.RegistryRecovering, Why: "w", Since: at, KeysLost: &at, KeysMissing: 6,
					Last: &registry.Recovery{Why: "v", BeganAt: at, EndedAt: at, Rebuilt: 1, Corrected: 2, Missing: 3, Products: 4, Pooled: 5},
				},
				Quarantined: 7,
			},
			`{"deployment_id":"d","registry_id":"r","epoch":3,"state":"recovering","why":"w","since":"2026-11-24T06:19:47Z","keys":"lost","keys_lost_since":"2026-11-24T06:19:47Z","keys_missing":6,"quarantined":7,` +
				`"last_recovery":{"why":"v","began_at":"2026-11-24T06:19:47Z","ended_at":"2026-11-24T06:19:47Z","rebuilt":1,"corrected":2,"missing":3,"products":4,"pooled":5}}`,
		},
	} {
		got, err := json.Marshal(showRegistry(c.status))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, string(got)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}
