package provider

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-log/tflogtest"

	"github.com/septemberai/orch/client"
)

// settingsOf are settings with only an address and both keys.
func settingsOf(url string) settings {
	return settings{URL: types.StringValue(url), AdminKey: types.StringValue("the-admin-key"), PlatformKey: types.StringValue("the-platform-key")}
}

// connectionTo returns the connection that settings describe.
func connectionTo(t *testing.T, s settings) *connection {
	t.Helper()
	var diags diag.Diagnostics
	c := s.connect("1.2.3", &diags)
	if diags.HasError() {
		t.Fatal(diags)
	}
	if c.client != nil {
		t.Cleanup(c.client.HTTP.CloseIdleConnections)
	}
	return c
}

// TestEnvironment: an argument takes precedence over its variable.
func TestEnvironment(t *testing.T) {
	t.Setenv(envURL, "http://from-the-environment")
	t.Setenv(envAdminKey, "admin\n")
	t.Setenv(envPlatformKey, "")
	s := settings{URL: types.StringValue("http://argument"), PlatformKey: types.StringNull(), CACert: types.StringUnknown()}
	s.fromEnvironment()
	if s.URL.ValueString() != "http://argument" || s.AdminKey.ValueString() != "admin" || known(s.PlatformKey) || !s.CACert.IsUnknown() {
		t.Errorf("the settings are %v", s)
	}
	s = settings{URL: types.StringValue("")}
	if s.fromEnvironment(); s.URL.ValueString() != "http://from-the-environment" {
		t.Errorf("the address is %s", s.URL)
	}
}

// TestKeys: which client is available, by what is known.
func TestKeys(t *testing.T) {
	for name, c := range map[string]struct {
		change          func(*settings)
		admin, platform string // what the error says; empty: none
	}{
		"both":           {func(*settings) {}, "", ""},
		"no admin key":   {func(s *settings) { s.AdminKey = types.StringNull() }, envAdminKey, ""},
		"no product key": {func(s *settings) { s.PlatformKey = types.StringValue("") }, "", envPlatformKey},
		"unknown key":    {func(s *settings) { s.PlatformKey = types.StringUnknown() }, "", "does not exist yet"},
		"unknown url":    {func(s *settings) { s.URL = types.StringUnknown() }, "does not exist yet", "does not exist yet"},
		"unknown ca":     {func(s *settings) { s.CACert = types.StringUnknown() }, "does not exist yet", "does not exist yet"},
	} {
		t.Run(name, func(t *testing.T) {
			s := settingsOf("http://127.0.0.1:1")
			c.change(&s)
			conn := connectionTo(t, s)
			a, aerr := conn.admin()
			p, perr := conn.platform()
			for _, got := range []struct {
				err  error
				want string
			}{{aerr, c.admin}, {perr, c.platform}} {
				if (got.err == nil) != (got.want == "") || got.err != nil && !strings.Contains(got.err.Error(), got.want) {
					t.Errorf("got %v, want %q", got.err, got.want)
				}
			}
			// No client has a key that its calls do not need.
			if aerr == nil && a.PlatformKey != "" || perr == nil && p.AdminKey != "" {
				t.Error("a client has both keys")
			}
		})
	}
}

// refusing responds to the first n calls with an error that may be retried, then with 200.
func refusing(t *testing.T, n int32, status int, code string) (*httptest.Server, *atomic.Int32) {
	t.Helper()
	calls := new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) <= n {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"error": {"code": %q, "message": "not now", "request_id": "r"}}`, code)
			return
		}
		_, _ = fmt.Fprint(w, `{"product_id": "p", "engine_id": "e", "status": "running"}`)
	}))
	t.Cleanup(s.Close)
	return s, calls
}

// TestRetries: what the service refuses for the moment is asked again.
func TestRetries(t *testing.T) {
	for status, code := range map[int]string{503: "OVERLOADED", 429: "TOO_MANY_WRONG_KEYS"} {
		s, calls := refusing(t, 2, status, code)
		c, err := connectionTo(t, settingsOf(s.URL)).admin()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := c.Product(t.Context(), "p"); err != nil || p.ProductID != "p" || calls.Load() != 3 {
			t.Errorf("%d: %v after %d calls", status, err, calls.Load())
		}
	}
}

// TestNotBusy: a change waits for another operation of its engine, but not longer than its
// context.
func TestNotBusy(t *testing.T) {
	t.Run("ended", func(t *testing.T) {
		s, calls := refusing(t, 2, 409, "ENGINE_BUSY")
		c, err := connectionTo(t, settingsOf(s.URL)).platform()
		if err != nil {
			t.Fatal(err)
		}
		e, err := notBusy(t.Context(), func() (*client.Engine, error) { return c.Destroy(t.Context(), "u") })
		if err != nil || e.EngineID != "e" || calls.Load() != 3 {
			t.Errorf("%v after %d calls", err, calls.Load())
		}
	})
	t.Run("not ended", func(t *testing.T) {
		s, _ := refusing(t, 1000, 409, "ENGINE_BUSY")
		c, err := connectionTo(t, settingsOf(s.URL)).platform()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err = notBusy(ctx, func() (*client.Engine, error) {
			defer cancel()
			return c.Destroy(t.Context(), "u")
		})
		if !errors.Is(err, client.ErrEngineBusy) {
			t.Errorf("got %v", err)
		}
	})
}

// TestCACert: a certificate of a private authority is accepted with ca_cert only.
func TestCACert(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"product_id": "p"}`) }))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]types.String{"with": types.StringValue(file), "without": types.StringNull()} {
		with := settingsOf(s.URL)
		with.CACert = ca
		c, err := connectionTo(t, with).admin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Product(t.Context(), "p"); (err == nil) != (name == "with") {
			t.Errorf("%s ca_cert: %v", name, err)
		}
	}
}

// TestLog: each call is logged, and no key.
func TestLog(t *testing.T) {
	s, _ := refusing(t, 0, 0, "")
	var out bytes.Buffer
	ctx := tflogtest.RootLogger(t.Context(), &out)
	c, err := connectionTo(t, settingsOf(s.URL)).admin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Product(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, `"path":"/products/p"`) || strings.Contains(got, "the-admin-key") {
		t.Errorf("the log is %s", got)
	}
}

// TestFreshKeys: a key is handed out only for its product and generation.
func TestFreshKeys(t *testing.T) {
	var f freshKeys
	if _, ok := f.get("p", 1); ok {
		t.Error("there is a key that nobody put")
	}
	f.put("p", 1, "one")
	f.put("p", 2, "two")
	for of, want := range map[keyOf]string{{"p", 1}: "one", {"p", 2}: "two", {"p", 3}: "", {"q", 1}: ""} {
		if got, _ := f.get(of.product, of.generation); got != want {
			t.Errorf("%v: got %q, want %q", of, got, want)
		}
	}
}

// TestExplanation: errors say what to do, and which request it was.
func TestExplanation(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"of the service": {&client.Error{Status: 401, Code: client.ErrInvalidAdminKey, Message: "no", RequestID: "r1"}, []string{"No. (INVALID_ADMIN_KEY)", envAdminKey, "Request id: r1"}},
		"of a proxy":     {&client.Error{Status: 502}, []string{"status 502", "proxy", envURL}},
		"too late":       {fmt.Errorf("x: %w", context.DeadlineExceeded), []string{"timeouts"}},
		"of a field":     {errors.New("policy.max_engines is -1"), []string{"policy.max_engines is -1."}},
	} {
		t.Run(name, func(t *testing.T) {
			got := explanation(c.err)
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
}

// TestWait ends with its context.
func TestWait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestDestroyOnlyThis: another engine of the same user is not destroyed.
func TestDestroyOnlyThis(t *testing.T) {
	var gone, destroys atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			destroys.Add(1)
			gone.Store(1)
		}
		if gone.Load() == 1 && r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprint(w, `{"error": {"code": "ENGINE_NOT_FOUND", "message": "m", "request_id": "r"}}`)
			return
		}
		_, _ = fmt.Fprint(w, `{"engine_id": "this", "status": "running"}`)
	}))
	t.Cleanup(s.Close)
	c, err := connectionTo(t, settingsOf(s.URL)).platform()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		id   string
		want int32 // calls so far that destroy
	}{{"another", 0}, {"this", 1}, {"this", 1}} {
		if err := destroy(t.Context(), c, "u", step.id); err != nil || destroys.Load() != step.want {
			t.Errorf("destroy %s: %v after %d calls, want %d", step.id, err, destroys.Load(), step.want)
		}
	}
}
