package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/traces"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a server that can be held: it keeps its connections but does not respond.
type store struct {
	*httptest.Server
	calls atomic.Int64
	// atOnce counts the requests to the path that only calls after the hold use. calls
	// cannot tell them from requests that were sent earlier and are read late.
	atOnce atomic.Int64

	mu   sync.Mutex
	held chan struct{} // closed when it responds again; nil: it responds
}

func newStore(t *testing.T) *store {
	s := &store{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		if r.URL.Path == "/at-once" {
			s.atOnce.Add(1)
		}
		s.mu.Lock()
		held := s.held
		s.mu.Unlock()
		if held != nil {
			<-held
		}
		if r.URL.Query().Has("index") { // until its client has disconnected
			<-r.Context().Done()
		}
	}))
	t.Cleanup(func() { s.release(); s.Server.Close() })
	return s
}

func (s *store) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = make(chan struct{})
}

func (s *store) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		close(s.held)
		s.held = nil
	}
}

// linkTo returns a link that watches a store, and a channel of its state changes.
func linkTo(t *testing.T, kind Kind, url string) (l *Link, away <-chan bool) {
	changes := make(chan bool, 16)
	l = New(kind, &http.Transport{DialContext: Dial(&net.Dialer{Timeout: 3 * time.Second})})
	l.Watch(func(ctx context.Context) error { return get(ctx, l, url) }, func(away bool) { changes <- away })
	t.Cleanup(l.Close)
	return l, changes
}

func get(ctx context.Context, l *Link, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := l.RoundTrip(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// TestAway: once a call got no response in time, others fail at once or wait, according to
// their context, and all continue as soon as the store responds.
func TestAway(t *testing.T) {
	s := newStore(t)
	l, away := linkTo(t, Vault, s.URL)
	if err := get(t.Context(), l, s.URL); err != nil {
		t.Fatal(err)
	}
	s.hold()
	var wg sync.WaitGroup
	began := time.Now()
	for range 10 * shortConns {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(FailFast(t.Context()), 2*time.Second)
			defer cancel()
			if get(ctx, l, s.URL) == nil {
				t.Error("a store that is held has responded")
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 7*time.Second {
		t.Errorf("calls with 2 s took %s", took)
	}
	if !<-away {
		t.Fatal("the store is not known to be unresponsive")
	}
	for range 1000 {
		if err := get(FailFast(t.Context()), l, s.URL+"/at-once"); !errors.Is(err, ErrAway) {
			t.Fatalf("got %v", err)
		}
	}
	if sent := s.atOnce.Load(); sent > 0 {
		t.Errorf("%d requests were sent to an unresponsive store", sent)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := get(short, l, s.URL); !errors.Is(err, ErrAway) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that waits: %v", err)
	}
	wg.Go(func() {
		if err := get(t.Context(), l, s.URL); err != nil {
			t.Errorf("one that waits until it is back: %v", err)
		}
	})
	s.release()
	began = time.Now()
	if <-away {
		t.Error("it became unresponsive twice")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("noticed after %s that it is back", took)
	}
	if err := get(FailFast(t.Context()), l, s.URL); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestNotAway: cases that do not show an unresponsive store.
func TestNotAway(t *testing.T) {
	s := newStore(t)
	l, away := linkTo(t, Nomad(strings.TrimPrefix(s.URL, "http://")), s.URL)
	s.hold()
	call := func(within time.Duration, path string) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if get(ctx, l, s.URL+path) == nil {
			t.Error("a store that is held has responded")
		}
	}
	call(50*time.Millisecond, "/")                           // its time limit was too short
	call(minSilence+100*time.Millisecond, "/v1/client/stat") // a node must respond
	hung, hangUp := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, hangUp)
	if err := get(hung, l, s.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-away:
		t.Error("the store counts as unresponsive")
	default:
	}
}

// TestLongPolls: however many blocking queries there are, a short call gets a connection.
func TestLongPolls(t *testing.T) {
	s := newStore(t)
	l, _ := linkTo(t, Consul, s.URL)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 100 {
		wg.Go(func() { _ = get(ctx, l, s.URL+"?index=7") })
	}
	for deadline := time.Now().Add(30 * time.Second); s.calls.Load() < consulLong; {
		if time.Now().After(deadline) {
			t.Fatalf("%d blocking queries are under way", s.calls.Load())
		}
		time.Sleep(time.Millisecond)
	}
	short, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	if err := get(short, l, s.URL); err != nil {
		t.Error(err)
	}
	if n := s.calls.Load(); n != consulLong+1 {
		t.Errorf("%d requests came, want %d blocking ones and 1", n, consulLong)
	}
}

// TestRefusedForLimits: a call that a store refuses because of its limits is retried until
// it is accepted, within its time limit, even if it is a write.
func TestRefusedForLimits(t *testing.T) {
	var refuse atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse.Add(-1) >= 0 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", r.Method, body)
	}))
	defer s.Close()
	l, _ := linkTo(t, Vault, s.URL)
	refuse.Store(3)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL, strings.NewReader("what"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(body) != "PUT what" {
		t.Errorf("got %q", body)
	}
	refuse.Store(1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := get(ctx, l, s.URL); !errors.Is(err, errRefused) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestObserver: every call is reported once with its kind and result, and each refusal
// because of a limit as well.
func TestObserver(t *testing.T) {
	var status atomic.Int64
	var limited atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if limited.Add(-1) >= 0 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer s.Close()
	l, _ := linkTo(t, Consul, s.URL)
	var got []string
	l.Observe(func(store string, kind CallKind, result Result, took time.Duration) {
		if took <= 0 && result != ResultLimited {
			t.Errorf("a call took %s", took)
		}
		got = append(got, fmt.Sprint(store, " ", kind, " ", result))
	})
	call := func(ctx context.Context, method, path string) {
		req, err := http.NewRequestWithContext(ctx, method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := l.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		status, limited int64
		ctx             context.Context
		method, path    string
		want            []string
	}{
		{200, 0, t.Context(), "GET", "/", []string{"consul read ok"}},
		{200, 0, t.Context(), "PUT", "/", []string{"consul write ok"}},
		{200, 2, t.Context(), "PUT", "/", []string{"consul write limited", "consul write limited", "consul write ok"}},
		{200, 0, t.Context(), "GET", "/?index=7", []string{"consul wait ok"}},
		{403, 0, t.Context(), "GET", "/", []string{"consul read denied"}},
		{403, 0, t.Context(), "DELETE", "/", []string{"consul write denied"}},
		{404, 0, t.Context(), "GET", "/", []string{"consul read client_error"}},
		{500, 0, t.Context(), "GET", "/", []string{"consul read server_error"}},
		{200, 0, gone, "GET", "/", []string{"consul read no_response"}},
		{200, 0, context.WithValue(t.Context(), probeKey{}, true), "GET", "/", []string{"consul probe ok"}},
	} {
		got = nil
		status.Store(c.status)
		limited.Store(c.limited)
		call(c.ctx, c.method, c.path)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s %s with %d: observed %v, want %v", c.method, c.path, c.status, got, c.want)
		}
	}
}

// TestTraceparent: a store is told the span that a call belongs to, and the caller's request
// stays as it was.
func TestTraceparent(t *testing.T) {
	const span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	told := make(chan string, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { told <- r.Header.Get("traceparent") }))
	defer s.Close()
	l, _ := linkTo(t, Vault, s.URL)
	for _, parent := range []string{"", span} {
		req, err := http.NewRequestWithContext(traces.Within(t.Context(), parent), http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := l.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := <-told; got != parent {
			t.Errorf("the store was told %q, want %q", got, parent)
		}
		if len(req.Header) > 0 {
			t.Errorf("the request has changed: %v", req.Header)
		}
	}
}
