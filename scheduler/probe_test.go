package scheduler

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testKey = "sk-sept-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// engineStub answers as an engine with testKey does, but for its health.
func engineStub(t *testing.T, health http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			if r.Header.Get("X-Engine-Key") != "" {
				t.Error("a key was sent to /health, which is open")
			}
			health(w, r)
		case r.Header.Get("X-Engine-Key") != testKey:
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestHealth(t *testing.T) {
	p := newProber(connectTimeout, time.Second)
	elsewhere := engineStub(t, says(200, `{"status":"ok"}`))
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		ok     bool
	}{
		{"OK", says(200, `{"status":"ok","uptime_seconds":2.5,"subsystems":{}}`), true},
		{"ErrOtherStatus", says(200, `{"status":"failing"}`), false},
		{"ErrNoStatus", says(200, `{}`), false},
		{"ErrNotJSON", says(200, `ok`), false},
		{"ErrNotOKCode", says(503, `{"status":"ok"}`), false},
		{"ErrAnotherSuccess", says(204, ``), false},
		{"ErrRedirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere+"/health", http.StatusFound)
		}, false},
		{"ErrEndless", says(200, `{"status":"`+strings.Repeat("o", maxHealthBody)+`"}`), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := p.health(t.Context(), engineStub(t, c.answer)); (err == nil) != c.ok {
				t.Errorf("got %v, want ok %t", err, c.ok)
			}
		})
	}
}

func TestBusy(t *testing.T) {
	p := newProber(connectTimeout, time.Second)
	for body, want := range map[string]bool{
		`{"status":"ok","busy":true}`: true, `{"status":"ok","busy":false}`: false, `{"status":"ok"}`: false, `{"status":"ok","busy":"yes"}`: false,
	} {
		url := engineStub(t, says(200, body))
		if busy, err := p.busy(t.Context(), url); err != nil || busy != want {
			t.Errorf("%s: got %t, %v", body, busy, err)
		}
		if err := p.health(t.Context(), url); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	var asked atomic.Int64
	late := engineStub(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			says(503, `{"status":"failing","busy":true}`)(w, r)
			return
		}
		says(200, `{"status":"ok","busy":true}`)(w, r)
	})
	if busy, err := p.busy(t.Context(), late); err != nil || !busy {
		t.Errorf("an engine that can serve after a while: got %t, %v", busy, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if busy, err := p.busy(ctx, engineStub(t, says(503, `{"status":"failing","busy":true}`))); err == nil || busy {
		t.Errorf("an engine that cannot serve: got %t, %v", busy, err)
	}
}

func TestUsable(t *testing.T) {
	p := newProber(connectTimeout, time.Second)
	healthy := engineStub(t, says(200, `{"status":"ok"}`))
	t.Run("OK", func(t *testing.T) {
		if err := p.usable(t.Context(), healthy, testKey); err != nil {
			t.Error(err)
		}
	})
	t.Run("ErrAnotherProcessHoldsThePort", func(t *testing.T) {
		if err := p.usable(t.Context(), healthy, "sk-sept-another"); err == nil {
			t.Error("an engine that refuses the key passed")
		}
	})
}
