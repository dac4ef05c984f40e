package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestRequests: each call's method, path, headers and body as sent.
func TestRequests(t *testing.T) {
	type request struct{ Line, Body, ContentType, Platform, Admin, User string }
	var got request
	var header http.Header
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		header = r.Header
		got = request{r.Method + " " + r.RequestURI, string(body), r.Header.Get("Content-Type"), sent(r, "X-Platform-Key"), sent(r, "X-Admin-Key"), sent(r, "X-User-Id")}
		_, _ = io.WriteString(w, `{"new_api_key": "k", "engine_id": "e"}`)
	})
	const jsonType = "application/json"
	all := map[string]request{
		"provision":       {"POST /engines/provision", `{"user_id":"a/b"}`, jsonType, "pk", none, "a%2Fb"},
		"engine":          {"GET /engines/a%2Fb", "", "", "pk", none, "a%2Fb"},
		"admit":           {"POST /engines/a%2Fb/admit", `{"auto_wake":true}`, jsonType, "pk", none, "a%2Fb"},
		"start":           {"POST /engines/a%2Fb/start", "", "", "pk", none, "a%2Fb"},
		"stop":            {"POST /engines/a%2Fb/stop", "", "", "pk", none, "a%2Fb"},
		"rotate-key":      {"POST /engines/a%2Fb/rotate-key", "", "", "pk", none, "a%2Fb"},
		"keep-awake":      {"POST /engines/a%2Fb/keep-awake", `{"seconds":2}`, jsonType, "pk", none, "a%2Fb"},
		"destroy":         {"DELETE /engines/a%2Fb", "", "", "pk", none, "a%2Fb"},
		"snapshot":        {"POST /engines/a%2Fb/snapshots", `{"label":"l"}`, jsonType, "pk", none, "a%2Fb"},
		"snapshot plain":  {"POST /engines/a%2Fb/snapshots", "", "", "pk", none, "a%2Fb"},
		"snapshots":       {"GET /engines/a%2Fb/snapshots?cursor=c%2Bd&limit=5", "", "", "pk", none, "a%2Fb"},
		"delete snapshot": {"DELETE /engines/a%2Fb/snapshots/s%2Ft", "", "", "pk", none, "a%2Fb"},
		"restore":         {"POST /engines/a%2Fb/restore", `{"snapshot_id":"s"}`, jsonType, "pk", none, "a%2Fb"},
		"restore newest":  {"POST /engines/a%2Fb/restore", "", "", "pk", none, "a%2Fb"},
		"fork":            {"POST /engines/a%2Fb/fork", `{"user_id":"v"}`, jsonType, "pk", none, "a%2Fb"},
		"fork snapshot":   {"POST /engines/a%2Fb/fork", `{"user_id":"v","snapshot_id":"s"}`, jsonType, "pk", none, "a%2Fb"},
		"engines":         {"GET /engines?cursor=c%2Bd&limit=5&status=running", "", "", "pk", none, none},
		"status":          {"GET /status", "", "", "pk", none, none},
		"metrics":         {"GET /metrics", "", "", "pk", none, none},
		"audit":           {"GET /audit?since=1970-01-01T00%3A00%3A00Z&user_id=a%2Fb", "", "", "pk", none, none},
		"audit of one":    {"GET /audit?product_id=p", "", "", none, "ak", none},
		"register":        {"POST /products/register", `{"slug":"s","display_name":"S","policy":{"max_engines":0}}`, jsonType, none, "ak", none},
		"products":        {"GET /products", "", "", none, "ak", none},
		"product":         {"GET /products/p%2Fq", "", "", none, "ak", none},
		"policy":          {"PUT /products/p/policy", `{"policy":{"engine_image":"e"}}`, jsonType, none, "ak", none},
		"platform key":    {"POST /products/p/rotate-platform-key", `{"overlap_seconds":60}`, jsonType, none, "ak", none},
		"delete":          {"DELETE /products/p", "", "", none, "ak", none},
		"registry":        {"GET /registry", "", "", none, "ak", none},
		"recovery":        {"GET /registry/recover", "", "", none, "ak", none},
		"recover":         {"POST /registry/recover", "", "", none, "ak", none},
		"rekey":           {"POST /registry/rekey", "", "", none, "ak", none},
		"quarantine":      {"GET /quarantine", "", "", none, "ak", none},
		"adopt":           {"POST /quarantine/e%2Ff/adopt", `{"product_id":"p","user_id":"a/b"}`, jsonType, none, "ak", none},
		"adopt own":       {"POST /quarantine/e/adopt", "", "", none, "ak", none},
		"stored":          {"GET /stored-engines?cursor=c%2Bd&limit=5", "", "", none, "ak", none},
		"import":          {"POST /stored-engines/e%2Ff/import", `{"snapshot_id":"s"}`, jsonType, none, "ak", none},
		"import newest":   {"POST /stored-engines/e/import", "", "", none, "ak", none},
		"discard":         {"DELETE /quarantine/e%2Ff", "", "", none, "ak", none},
		"health":          {"GET /health", "", "", none, none, none},
		"live":            {"GET /live", "", "", none, none, none},
		"ready":           {"GET /ready", "", "", none, none, none},
	}
	for name := range c.calls(t.Context(), "") {
		if _, tested := all[name]; !tested {
			t.Errorf("%s is not tested", name)
		}
	}
	for name, want := range all {
		t.Run(name, func(t *testing.T) {
			for _, slash := range []string{"", "/"} {
				full := &Client{BaseURL: c.BaseURL + slash, HTTP: c.HTTP, PlatformKey: "pk", AdminKey: "ak"}
				if err := full.calls(t.Context(), "a/b")[name](); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			}
			if err := c.calls(t.Context(), "a/b")[name](); err != nil {
				t.Fatal(err)
			}
			if got.Platform != none || got.Admin != none {
				t.Errorf("keys that are not set are sent: %+v", got)
			}
		})
	}
	t.Run("version, idempotency key and request id", func(t *testing.T) {
		ctx := WithRequestID(t.Context(), "my-id")
		_, err := c.Provision(ctx, "u", "engine:2", IdempotencyKey("once"))
		if err != nil || got.Body != `{"user_id":"u","engine_version":"engine:2"}` || header.Get("Idempotency-Key") != "once" || header.Get("X-Request-Id") != "my-id" {
			t.Errorf("%v, %+v, %v", err, got, header)
		}
	})
	t.Run("an admit without options has no body", func(t *testing.T) {
		if _, err := c.Admit(t.Context(), "u", AdmitOptions{}); err != nil || got.Body != "" {
			t.Errorf("%v, %+v", err, got)
		}
	})
}

const none = "(none)"

func sent(r *http.Request, name string) string {
	if len(r.Header[name]) == 0 {
		return none
	}
	return r.Header.Get(name)
}

// anyUser generates user_ids that docs/api.md allows, many of which look like syntax.
var anyUser = rapid.OneOf(
	rapid.StringOfN(rapid.SampledFrom([]rune(`/%.?#&=+;:@ \"'<>{}$|*ü🦊a2F`)), 1, -1, 256),
	rapid.StringN(1, -1, 256),
).Filter(func(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
})

// TestEnginePath: a user_id is one segment of the path and can be decoded from it.
func TestEnginePath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		user := anyUser.Draw(t, "user_id")
		u, err := url.Parse("http://h" + enginePath(user) + "/start")
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(u.EscapedPath(), "/")
		if len(parts) != 4 || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q became %q", user, u)
		}
		if back, err := url.PathUnescape(parts[2]); err != nil || back != user {
			t.Fatalf("%q came back as %q, %v", user, back, err)
		}
	})
}

// TestInvalidUserID: encoding/json would replace it with another user's id.
func TestInvalidUserID(t *testing.T) {
	var sent []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			UserID string `json:"user_id"`
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		sent = append(sent, body.UserID)
		_, _ = io.WriteString(w, `{}`)
	})
	_, provision := c.Provision(t.Context(), "a\xff", "")
	_, fork := c.Fork(t.Context(), "u", "a\xff", "")
	if provision == nil || fork == nil || len(sent) != 0 {
		t.Errorf("provisioned for %q, errors %v, %v", sent, provision, fork)
	}
}
