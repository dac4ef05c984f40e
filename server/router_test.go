package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
)

// reached is the error of a call without a platform key that reaches a handler of an
// engine: 401 shows that the route was found.
const reached = engine.InvalidPlatformKey

// users are user_ids, as written in a path, that a router might split.
var users = []string{
	"u", "provision", "start", "a%2Fb", "%2F", "%2f%2F", "a%252Fb", "with%20space", "%20", "+", "%F0%9F%A6%8A", "auth0%7C123", "me@example.com",
	".", "..", "%2E%2E", "..%2F..", "%3Fq=1", "%23", ";", "a;b=c", "*", ":user_id", "*all", "%00", "%0A", "%FF", "health", "products",
	strings.Repeat("x", 256), strings.Repeat("%C3%A9", 128), strings.Repeat("y", 5000),
}

func TestEngineRoutes(t *testing.T) {
	s := newCutOff(t)
	for _, user := range users {
		t.Run(user[:min(len(user), 20)], func(t *testing.T) {
			path := "/engines/" + user
			for _, c := range []struct{ method, path string }{
				{"GET", path}, {"DELETE", path}, {"POST", path + "/start"}, {"POST", path + "/stop"}, {"POST", path + "/rotate-key"}, {"POST", path + "/admit"},
				{"GET", path + "/snapshots"}, {"POST", path + "/snapshots"}, {"DELETE", path + "/snapshots/a%2Fb"}, {"POST", path + "/restore"}, {"POST", path + "/fork"},
			} {
				want(t, s.send(c.method, c.path, ""), 401, reached)
			}
			want(t, s.send("POST", path+"/no-such-action", ""), 404, engine.NotFound)
			want(t, s.send("GET", path+"/no-such-action", ""), 404, engine.NotFound)
			want(t, s.send("POST", path+"/start/", ""), 404, engine.NotFound)
			want(t, s.send("GET", path+"/snapshots/", ""), 404, engine.NotFound)
			want(t, s.send("DELETE", path+"/snapshots/", ""), 404, engine.NotFound)
			if user != "provision" {
				want(t, s.send("POST", path, ""), 405, engine.MethodNotAllowed)
			}
		})
	}
	t.Run("by-id", func(t *testing.T) {
		// It is a user like any other, whose snapshots these are.
		want(t, s.send("GET", "/engines/by-id/snapshots", ""), 401, reached)
		want(t, s.send("GET", "/engines/by-id/snapshot", ""), 401, engine.InvalidAdminKey)
	})
	t.Run("provision", func(t *testing.T) {
		want(t, s.send("POST", "/engines/provision", ""), 401, reached)
	})
}

func TestUnknownRoutes(t *testing.T) {
	s := newCutOff(t)
	for _, path := range []string{
		"/", "//", "/engine", "/engines/", "/engines//", "/engines/u/", "/engines/u//", "/engines/a/b", "/engines/by-id/", "/engines/by-id/e/", "/engines/by-id/e/f", "/engines/by-id%2F/e", "/nodes/", "/nodes/x", "//engines/u", "/v1/engines/u", "/Engines/u",
		"/engines/u/start/x", "/engines/u/START", "/engines/../health", "/health/", "/health/..", "//health", "/%68ealth", "/products/", "/status/", "/audit/x",
		"/products/register/", "/products/p/policy/", "/products/p/no-such-action", "/favicon.ico", "/debug/pprof/", "/metrics/x", "/\u00e9", "/engines%2Fu",
		"/registry/", "/registry/x", "/registry/rekey/", "/registry/recover/x", "/quarantine/", "/quarantine/x/", "/quarantine/x/discard", "/quarantine/x/adopt/", "/quarantine/a/b/adopt", "/stored-engines/", "/stored-engines/x", "/stored-engines/x/import/", "/stored-engines/a/b/import",
	} {
		t.Run(path, func(t *testing.T) {
			for _, method := range methods {
				want(t, s.send(method, path, ""), 404, engine.NotFound)
			}
		})
	}
	t.Run("ErrEmptyUserID", func(t *testing.T) {
		want(t, s.send("POST", "/engines//start", ""), 400, engine.InvalidRequest)
	})
}

var methods = []string{"CONNECT", "DELETE", "FOO", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

// TestAllow: the methods in the Allow header are those that are accepted.
func TestAllow(t *testing.T) {
	s := newCutOff(t)
	for path, allowed := range map[string]string{
		"/health": "GET, HEAD", "/live": "GET, HEAD", "/ready": "GET, HEAD", "/status": "GET, HEAD", "/metrics": "GET, HEAD", "/audit": "GET, HEAD", "/engines": "GET, HEAD",
		"/reconcile": "GET, HEAD, POST", "/unreachable-volumes": "GET, HEAD", "/unreachable-volumes/x": "DELETE", "/provider-keys": "GET, HEAD", "/provider-keys/apply": "POST",
		"/registry": "GET, HEAD", "/registry/recover": "GET, HEAD, POST", "/registry/rekey": "POST",
		"/quarantine": "GET, HEAD", "/quarantine/x": "DELETE", "/quarantine/x/adopt": "POST", "/quarantine/adopt": "DELETE", "/stored-engines": "GET, HEAD", "/stored-engines/x/import": "POST",
		"/products": "GET, HEAD", "/products/register": "DELETE, GET, HEAD, POST", "/products/p": "DELETE, GET, HEAD", "/products/p/policy": "PUT",
		"/products/p/rotate-platform-key": "POST", "/engines/u/admit": "POST", "/engines/u": "DELETE, GET, HEAD", "/engines/a%2Fb": "DELETE, GET, HEAD", "/engines/provision": "DELETE, GET, HEAD, POST",
		"/engines/u/start": "POST", "/engines/u/stop": "POST", "/engines/u/rotate-key": "POST", "/engines/provision/start": "POST",
		"/engines/u/snapshots": "GET, HEAD, POST", "/engines/u/snapshots/s": "DELETE", "/engines/u/restore": "POST", "/engines/u/fork": "POST",
		"/engines/by-id/snapshots": "GET, HEAD, POST", "/engines/by-id/snapshots/s": "DELETE", "/engines/by-id/fork": "GET, HEAD, POST",
		"/nodes": "GET, HEAD", "/engines/by-id": "DELETE, GET, HEAD", "/engines/by-id/e": "GET, HEAD", "/engines/by-id/start": "GET, HEAD, POST", "/engines/by-id%2Fe": "DELETE, GET, HEAD",
	} {
		t.Run(path, func(t *testing.T) {
			for _, method := range methods {
				w := s.send(method, path, "")
				if slices.Contains(strings.Split(allowed, ", "), method) {
					if w.Code == 405 || w.Code == 404 {
						t.Errorf("%s: %d", method, w.Code)
					}
					continue
				}
				want(t, w, 405, engine.MethodNotAllowed)
				if got := w.Header().Get("Allow"); got != allowed {
					t.Errorf("%s: Allow is %q, want %q", method, got, allowed)
				}
			}
		})
	}
}

// answers returns the status of a request without keys. It is independent of the router: it
// uses the segments of the path as sent.
func answers(method, escaped string) int {
	if method == "HEAD" {
		method = "GET"
	}
	fixed := map[string]int{"/openapi.yaml": 200, "/docs": 200, "/health": 503, "/live": 200, "/ready": 503, "/engines": 401, "/products": 401, "/status": 401, "/metrics": 401, "/audit": 401}
	if status, ok := fixed[escaped]; ok {
		if method != "GET" {
			return 405
		}
		return status
	}
	create := map[string]string{"engines": "provision", "products": "register"}
	actions := map[string]string{
		"engines/start": "POST", "engines/stop": "POST", "engines/rotate-key": "POST", "engines/admit": "POST", "engines/restore": "POST", "engines/fork": "POST", "engines/snapshots": "POST",
		"products/rotate-platform-key": "POST", "products/policy": "PUT",
	}
	admin := map[string][]string{
		"/reconcile": {"GET", "POST"}, "/unreachable-volumes": {"GET"}, "/provider-keys": {"GET"}, "/provider-keys/apply": {"POST"},
		"/stored-engines": {"GET"}, "/registry": {"GET"}, "/registry/recover": {"GET", "POST"}, "/registry/rekey": {"POST"}, "/quarantine": {"GET"}, "/nodes": {"GET"},
	}
	if methods := admin[escaped]; methods != nil {
		if slices.Contains(methods, method) {
			return 401
		}
		return 405
	}
	parts := strings.Split(escaped, "/")
	if len(parts) == 3 && parts[0] == "" && (parts[1] == "unreachable-volumes" || parts[1] == "quarantine") && parts[2] != "" {
		if method == "DELETE" {
			return 401
		}
		return 405
	}
	if len(parts) == 4 && parts[0] == "" && (parts[1] == "quarantine" && parts[3] == "adopt" || parts[1] == "stored-engines" && parts[3] == "import") {
		switch {
		case method != "POST":
			return 405
		case parts[2] == "":
			return 400
		}
		return 401
	}
	if len(parts) >= 4 && len(parts) <= 5 && parts[0] == "" && parts[1] == "engines" && parts[3] == "snapshots" {
		switch takes := map[int][]string{4: {"GET", "POST"}, 5: {"DELETE"}}[len(parts)]; {
		case len(parts) == 5 && parts[4] == "":
			return 404
		case !slices.Contains(takes, method):
			return 405
		case parts[2] == "":
			return 400
		}
		return 401
	}
	byID := len(parts) == 4 && parts[0] == "" && parts[1] == "engines" && parts[2] == "by-id" && parts[3] != ""
	if takes := actions["engines/"+parts[len(parts)-1]]; byID && method != takes {
		if method == "GET" {
			return 401
		}
		return 405
	}
	if len(parts) < 3 || len(parts) > 4 || parts[0] != "" || create[parts[1]] == "" {
		return 404
	}
	id := parts[2]
	if len(parts) == 3 {
		switch {
		case id == "":
			return 404
		case method == "GET" || method == "DELETE" || method == "POST" && id == create[parts[1]]:
			return 401
		}
		return 405
	}
	switch takes := actions[parts[1]+"/"+parts[3]]; {
	case takes == "":
		return 404
	case method != takes:
		return 405
	case id == "":
		return 400
	}
	return 401
}

// FuzzPaths: every path gets the response that follows from its segments, in the form of
// the contract; nothing is redirected, cleaned or split differently.
func FuzzPaths(f *testing.F) {
	s := newCutOff(f)
	for _, user := range users {
		f.Add("GET", "/engines/"+user)
		f.Add("POST", "/engines/"+user+"/start")
		f.Add("PUT", "/products/"+user+"/policy")
		f.Add("GET", "/engines/"+user+"/snapshots")
		f.Add("DELETE", "/engines/u/snapshots/"+user)
		f.Add("POST", "/quarantine/"+user+"/adopt")
		f.Add("POST", "/stored-engines/"+user+"/import")
		f.Add("DELETE", "/quarantine/"+user)
	}
	for _, target := range []string{"/health", "/live?x=1", "/ready", "/products/register", "*", "http://host", "http://host/live", "//", "/engines//start", "/engines/", "/registry", "/registry/recover", "/quarantine//adopt", "/nodes", "/engines/by-id", "/engines/by-id/", "/engines/by-id/e", "/engines/by-id/start", "/engines/by-id%2Fe"} {
		f.Add("GET", target)
		f.Add("OPTIONS", target)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || method == "" {
			t.Skip("net/http refuses it")
		}
		w := s.answer(&http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1})
		code, _ := checkForm(t, w)
		if status := answers(method, u.EscapedPath()); w.Code != status {
			t.Fatalf("%s %s: got %d %s, want %d", method, u.EscapedPath(), w.Code, code, status)
		}
		if allow := w.Header().Get("Allow"); (w.Code == 405) != (allow != "") || slices.Contains(strings.Split(allow, ", "), method) {
			t.Fatalf("%s %s: %d with Allow %q", method, u.EscapedPath(), w.Code, allow)
		}
	})
}
