package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// fails makes the server respond to a request with this handler.
func (s *cutOff) fails(h handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, "", h) })).
		ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w
}

func (s *cutOff) failsWith(err error) *httptest.ResponseRecorder {
	return s.fails(func(http.ResponseWriter, *http.Request, string) error { return err })
}

// inner must never be shown to a caller.
const inner = "dial tcp 10.1.2.3:4646: token s.hvs-secret"

func TestCausesAreForTheLog(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		status int
		code   engine.Code
	}{
		"unknown":           {errors.New(inner), 500, engine.Internal},
		"wrapped":           {fmt.Errorf("step: %w", errors.New(inner)), 500, engine.Internal},
		"product not found": {fmt.Errorf("%w: %s", registry.ErrNotFound, inner), 500, engine.Internal},
		"consul away":       {fmt.Errorf("%w: %s", registry.ErrUnavailable, inner), 503, engine.BackendUnavailable},
		"registry moved":    {fmt.Errorf("%w: %s", registry.ErrMoved, inner), 503, engine.RegistryRecovering},
		"no session":        {fmt.Errorf("%w: %s", registry.ErrNoSession, inner), 503, engine.BackendUnavailable},
		"nomad away":        {fmt.Errorf("%w: %s", cluster.ErrUnavailable, inner), 503, engine.BackendUnavailable},
		"nomad refused":     {fmt.Errorf("%w: %s", cluster.ErrRejected, inner), 502, engine.BackendError},
		"nomad denied":      {fmt.Errorf("%w: %w: %s", cluster.ErrUnavailable, cluster.ErrDenied, inner), 502, engine.BackendRefused},
		"consul denied":     {fmt.Errorf("%w: %w: %s", registry.ErrUnavailable, registry.ErrDenied, inner), 502, engine.BackendRefused},
		"vault away":        {fmt.Errorf("%w: %s", secrets.ErrUnavailable, inner), 503, engine.BackendUnavailable},
		"vault denied":      {fmt.Errorf("%w: %w: %s", secrets.ErrUnavailable, secrets.ErrDenied, inner), 502, engine.BackendRefused},
		"conflict":          {fmt.Errorf("%w: %s", registry.ErrConflict, inner), 409, engine.EngineBusy},
		"cancelled":         {fmt.Errorf("%s: %w", inner, context.Canceled), 503, engine.BackendUnavailable},
		"cause of ours":     {&engine.Error{Code: engine.BootTimeout, Message: "too late", Err: errors.New(inner)}, 504, engine.BootTimeout},
		"ours, joined":      {errors.Join(errors.New(inner), &engine.Error{Code: engine.PortExhaustion, Message: "no port", Err: errors.New(inner)}), 503, engine.PortExhaustion},
		"code not in table": {&engine.Error{Code: "NO_SUCH_CODE", Message: "m", Err: errors.New(inner)}, 500, "NO_SUCH_CODE"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCutOff(t)
			w := s.failsWith(c.err)
			want(t, w, c.status, c.code)
			hidden(t, w)
			if c.status >= 500 && !strings.Contains(s.logs.String(), inner) {
				t.Error("the log does not contain the cause")
			}
		})
	}
	t.Run("panic", func(t *testing.T) {
		s := newCutOff(t)
		w := s.fails(func(http.ResponseWriter, *http.Request, string) error { panic(inner) })
		want(t, w, 500, engine.Internal)
		hidden(t, w)
		if log := s.logs.String(); !strings.Contains(log, inner) || !strings.Contains(log, "errors_test.go") {
			t.Error("the log has not the panic with its stack")
		}
	})
}

func hidden(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	answer := w.Body.String() + fmt.Sprint(w.Header())
	for _, part := range []string{"dial", "10.1.2.3", "secret", "panic", ".go:"} {
		if strings.Contains(answer, part) {
			t.Errorf("the response shows %q: %s", part, answer)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	s := newCutOff(t)
	for wait, seconds := range map[time.Duration]string{
		0: "", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", 10 * time.Second: "10", 90*time.Second + 1: "91",
	} {
		for code, st := range status {
			expected := seconds
			if seconds == "" && (st == http.StatusTooManyRequests || st == http.StatusServiceUnavailable) {
				expected = "1"
			}
			w := s.failsWith(&engine.Error{Code: code, Message: "m", RetryAfter: wait})
			want(t, w, st, code)
			if got := w.Header().Get("Retry-After"); got != expected {
				t.Errorf("%s after %s: Retry-After is %q, want %q", code, wait, got, expected)
			}
		}
	}
}

// TestAgentsAreAway: the server's responses when none of its agents responds.
func TestAgentsAreAway(t *testing.T) {
	s := newCutOff(t)
	key := secrets.NewPlatformKey()
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/engines/provision", `{"user_id": "u"}`}, {"POST", "/engines/provision", `{"user_id": ""}`}, {"POST", "/engines/provision", `no json`},
		{"GET", "/engines/u", ""}, {"GET", "/engines/%00", ""}, {"DELETE", "/engines/u", ""},
		{"POST", "/engines/u/start", ""}, {"POST", "/engines/u/stop", ""}, {"POST", "/engines/u/rotate-key", ""}, {"GET", "/ready", ""},
	} {
		w := s.send(c.method, c.path, c.body, "X-Platform-Key", key)
		want(t, w, 503, engine.BackendUnavailable)
		if strings.Contains(w.Body.String(), "127.0.0.1") {
			t.Errorf("%s %s shows an address: %s", c.method, c.path, w.Body)
		}
	}
	if strings.Contains(s.logs.String(), key) {
		t.Error("the log has the platform key")
	}
	t.Run("health", func(t *testing.T) {
		w := s.send("GET", "/health", "")
		checkForm(t, w)
		for _, part := range []string{`"status":"degraded"`, `"registry":"recovering"`, `"nomad":"unavailable"`, `"consul":"unavailable"`, `"vault":"unavailable"`} {
			if w.Code != 503 || !strings.Contains(w.Body.String(), part) {
				t.Errorf("%d %s lacks %s", w.Code, w.Body, part)
			}
		}
		if strings.Contains(w.Body.String(), "127.0.0.1") {
			t.Errorf("it shows an address: %s", w.Body)
		}
	})
	t.Run("live", func(t *testing.T) {
		if w := s.send("GET", "/live", ""); w.Code != 200 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}
