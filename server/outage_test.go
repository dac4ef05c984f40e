package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
)

// lines returns the lines of the log that contain all of the words.
func (s *cutOff) lines(words ...string) (found []string) {
next:
	for line := range strings.Lines(s.logs.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// TestOutageIsTwoLines: there is no line per request, and another outage begins with a line
// of its own.
func TestOutageIsTwoLines(t *testing.T) {
	s := newCutOff(t)
	var away atomic.Bool
	away.Store(true)
	s.outages.look, s.outages.quiet = time.Millisecond, 20*time.Millisecond
	s.outages.health = func(context.Context) map[string]scheduler.BackendState {
		if away.Load() {
			return map[string]scheduler.BackendState{"consul": scheduler.BackendAway}
		}
		return map[string]scheduler.BackendState{"consul": scheduler.BackendOK}
	}
	for round := 1; round <= 2; round++ {
		away.Store(true)
		for range 300 {
			want(t, s.send("GET", "/engines/u", "", "X-Platform-Key", secrets.NewPlatformKey()), 503, engine.BackendUnavailable)
		}
		if got := s.lines("[ERROR]"); len(got) != round || !strings.Contains(got[round-1], "because_of=consul") {
			t.Fatalf("round %d: %d errors:\n%s", round, len(got), strings.Join(got[:min(len(got), 5)], ""))
		}
		if got := s.lines("[DEBUG]", "request failed", "status=503"); len(got) != 300*round {
			t.Errorf("round %d: %d requests at debug", round, len(got))
		}
		if got := s.lines("no longer fail"); len(got) != round-1 {
			t.Errorf("round %d: it is over while the store is unavailable: %s", round, got)
		}
		away.Store(false)
		deadline := time.Now().Add(30 * time.Second)
		for len(s.lines("no longer fail")) < round && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if got := s.lines("[WARN]", "no longer fail", "because_of=consul", "failed=300"); len(got) != round {
			t.Fatalf("round %d: %d ends:\n%s", round, len(got), s.lines("[WARN]"))
		}
	}
}

// TestOutagesAreToldByWhatIsAway: there is one outage per dependency; errors of a single
// request are logged as usual.
func TestOutagesAreToldByWhatIsAway(t *testing.T) {
	s := newCutOff(t)
	for _, err := range []error{registry.ErrUnavailable, registry.ErrNoSession, cluster.ErrUnavailable, secrets.ErrUnavailable, registry.ErrMoved, errors.New("a fault")} {
		for range 3 {
			s.failsWith(fmt.Errorf("step: %w", err))
		}
	}
	for what, n := range map[string]int{"because_of=consul": 1, "because_of=nomad": 1, "because_of=vault": 1, "because_of=REGISTRY_RECOVERING": 1, "code=INTERNAL_ERROR": 3, "": 7} {
		if got := s.lines("[ERROR]", what); len(got) != n {
			t.Errorf("%q: %d errors, want %d", what, len(got), n)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.lines("the server stops while requests fail"); len(got) != 4 {
		t.Errorf("%d outages were logged at the end, want 4", len(got))
	}
}

// TestCallerHangsUp: a caller that disconnects is no fault of the service.
func TestCallerHangsUp(t *testing.T) {
	s := newCutOff(t)
	handling, done := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		s.serve(w, r, "", func(_ http.ResponseWriter, r *http.Request, _ string) error {
			close(handling)
			<-r.Context().Done()
			return fmt.Errorf("%w: %w", registry.ErrUnavailable, r.Context().Err())
		})
	})))
	defer srv.Close()
	ctx, hangUp := context.WithCancel(t.Context())
	go func() { <-handling; hangUp() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := srv.Client().Do(req); err == nil {
		_ = resp.Body.Close()
		t.Fatal("it got a response")
	}
	<-done
	if got := s.lines("[DEBUG]", "disconnected", "status=499"); len(got) != 1 {
		t.Errorf("the log is\n%s", s.logs.String())
	}
	if got := s.lines("[ERROR]"); len(got) != 0 {
		t.Errorf("errors: %s", got)
	}
}
