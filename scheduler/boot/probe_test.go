package boot

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testKey = "sk-sept-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// engineStub responds as an engine with testKey does, except for its health.
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
	p := NewProber(time.Second, nil)
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
			if err := p.Health(t.Context(), engineStub(t, c.answer)); (err == nil) != c.ok {
				t.Errorf("got %v, want ok %t", err, c.ok)
			}
		})
	}
}

func TestBusy(t *testing.T) {
	p := NewProber(time.Second, nil)
	for body, want := range map[string]bool{
		`{"status":"ok","busy":true}`: true, `{"status":"ok","busy":false}`: false, `{"status":"ok"}`: false, `{"status":"ok","busy":"yes"}`: false,
	} {
		url := engineStub(t, says(200, body))
		if busy, err := p.Busy(t.Context(), url); err != nil || busy != want {
			t.Errorf("%s: got %t, %v", body, busy, err)
		}
		if err := p.Health(t.Context(), url); err != nil {
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
	if busy, err := p.Busy(t.Context(), late); err != nil || !busy {
		t.Errorf("an engine that can serve after a while: got %t, %v", busy, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if busy, err := p.Busy(ctx, engineStub(t, says(503, `{"status":"failing","busy":true}`))); err == nil || busy {
		t.Errorf("an engine that cannot serve: got %t, %v", busy, err)
	}
}

// proves returns the proof of a key by a process that Nomad has started.
func proves(key string) Proof {
	return Proof{Path: "/proof", Key: key, Runs: func(context.Context) bool { return true }}
}

// answers is a healthy engine that responds to the proof according to the key in the
// request.
func answers(t *testing.T, by func(key string) int) (url string, got func() []string) {
	t.Helper()
	var mu sync.Mutex
	var keys []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			says(200, `{"status":"ok"}`)(w, r)
			return
		}
		key := r.Header.Get("X-Engine-Key")
		mu.Lock()
		keys = append(keys, key)
		mu.Unlock()
		w.WriteHeader(by(key))
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(keys) }
}

// Three responses prove an engine, the last one to its own key. The key is not sent to an
// engine that accepts any key, nor to one that Nomad has not started.
func TestUsable(t *testing.T) {
	p := NewProber(time.Second, nil)
	by := func(none, wrong, right int) func(string) int {
		return func(key string) int {
			switch key {
			case "":
				return none
			case testKey:
				return right
			}
			return wrong
		}
	}
	for name, c := range map[string]struct {
		answer    func(string) int
		idle      bool // Nomad has not started it
		key       string
		says      string // the error; "": none
		disclosed bool
	}{
		"OK":                {answer: by(401, 401, 404), key: testKey, disclosed: true},
		"OKForbidden":       {answer: by(403, 403, 200), key: testKey, disclosed: true},
		"OKFails":           {answer: by(401, 403, 500), key: testKey, disclosed: true},
		"OKNoKeyKnown":      {answer: by(401, 401, 404)},
		"ErrOpen":           {answer: by(200, 200, 200), key: testKey, says: "returned 200 without a key"},
		"ErrRoutesFirst":    {answer: by(404, 404, 404), key: testKey, says: "returned 404 without a key"},
		"ErrAnyKey":         {answer: by(401, 200, 200), key: testKey, says: "returned 200 with a wrong key"},
		"ErrRedirects":      {answer: by(302, 302, 302), key: testKey, says: "returned 302 without a key"},
		"ErrAnyKeyNotAsked": {answer: by(401, 200, 200), says: "returned 200 with a wrong key"},
		"ErrRefusesItsOwn":  {answer: by(401, 401, 401), key: testKey, says: "returned 401 with the engine's own key", disclosed: true},
		"ErrNotStarted":     {answer: by(401, 401, 404), key: testKey, idle: true, says: "has not started"},
	} {
		t.Run(name, func(t *testing.T) {
			url, got := answers(t, c.answer)
			proof := proves(c.key)
			proof.Runs = func(context.Context) bool { return !c.idle }
			err := p.usable(t.Context(), url, proof)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			keys := got()
			if slices.Contains(keys, testKey) != c.disclosed {
				t.Errorf("it was sent its key: %t", !c.disclosed)
			}
			// An engine that is slow to accept a connection gets the first two requests at
			// once.
			if !slices.Contains(keys, "") {
				t.Errorf("it never got a request without a key")
			}
			if i := slices.Index(keys, testKey); i >= 0 && i != len(keys)-1 {
				t.Errorf("it was sent its key before it refused others")
			}
		})
	}
}

// TestLockedInOrder: over one connection an engine gets the request without a key first.
func TestLockedInOrder(t *testing.T) {
	url, got := answers(t, func(string) int { return 401 })
	one, end := NewProber(time.Second, nil).Talk()
	defer end()
	if err := one.Locked(t.Context(), url, "/proof"); err != nil {
		t.Fatal(err)
	}
	if keys := got(); len(keys) != 2 || keys[0] != "" || keys[1] == "" {
		t.Errorf("it got requests with the keys %q", keys)
	}
}

// An engine that breaks the contract is considered broken after a while. Until Nomad has
// started it, a stranger responds in its place, and that time does not count.
func TestBreachIsBelieved(t *testing.T) {
	url, _ := answers(t, func(string) int { return 404 })
	b := NewBoots(NewProber(time.Second, nil))
	var broken *Breach
	began := time.Now()
	if err := b.AwaitUsable(t.Context(), url, proves(testKey), nil); !errors.As(err, &broken) || time.Since(began) < breachFor {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(t.Context(), breachFor*3/2)
	defer cancel()
	stranger := proves(testKey)
	stranger.Runs = func(context.Context) bool { return false }
	if err := b.AwaitUsable(ctx, url, stranger, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v of a stranger", err)
	}
	late := proves(testKey)
	began = time.Now()
	late.Runs = func(context.Context) bool { return time.Since(began) > breachFor/2 }
	if err := b.AwaitUsable(t.Context(), url, late, nil); !errors.As(err, &broken) || time.Since(began) < breachFor*3/2 {
		t.Errorf("got %v after %s of an engine that started late", err, time.Since(began))
	}
}
