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

// TestRequests: each call's method, path, headers and body on the wire.
func TestRequests(t *testing.T) {
	type request struct{ Line, Body, ContentType, Platform, Admin string }
	var got request
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = request{r.Method + " " + r.RequestURI, string(body), r.Header.Get("Content-Type"), sent(r, "X-Platform-Key"), sent(r, "X-Admin-Key")}
		_, _ = io.WriteString(w, `{"new_api_key": "k", "engine_id": "e"}`)
	})
	const jsonType = "application/json"
	for name, want := range map[string]request{
		"register":   {"POST /products/register", `{"display_name":"S","slug":"s"}`, jsonType, "pk", "ak"},
		"provision":  {"POST /engines/provision", `{"user_id":"a/b"}`, jsonType, "pk", "ak"},
		"engine":     {"GET /engines/a%2Fb", "", "", "pk", "ak"},
		"start":      {"POST /engines/a%2Fb/start", "", "", "pk", "ak"},
		"stop":       {"POST /engines/a%2Fb/stop", "", "", "pk", "ak"},
		"rotate-key": {"POST /engines/a%2Fb/rotate-key", "", "", "pk", "ak"},
		"destroy":    {"DELETE /engines/a%2Fb", "", "", "pk", "ak"},
		"ready":      {"GET /ready", "", "", "pk", "ak"},
	} {
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
	t.Run("version and policy", func(t *testing.T) {
		if _, err := c.Provision(t.Context(), "u", "engine:2"); err != nil || got.Body != `{"engine_version":"engine:2","user_id":"u"}` {
			t.Errorf("%v, %+v", err, got)
		}
		if _, err := c.RegisterProduct(t.Context(), "s", "S", map[string]int{"max_engines": 0}); err != nil || got.Body != `{"display_name":"S","policy":{"max_engines":0},"slug":"s"}` {
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

// anyUser makes user_ids of SPEC section 1, and many that look like syntax.
var anyUser = rapid.OneOf(
	rapid.StringOfN(rapid.SampledFrom([]rune(`/%.?#&=+;:@ \"'<>{}$|*ü🦊a2F`)), 1, -1, 256),
	rapid.StringN(1, -1, 256),
).Filter(func(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
})

// TestEnginePath: a user_id is one segment of the path and comes back from it.
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

// TestInvalidUserID: encoding/json would send another user's id in its place.
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
	if _, err := c.Provision(t.Context(), "a\xff", ""); err == nil || len(sent) != 0 {
		t.Errorf("provisioned for %q, error %v", sent, err)
	}
}
