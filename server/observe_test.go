package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/secrets"
)

// seen records the requests that an observer is told about.
type seen struct {
	mu  sync.Mutex
	all []string
}

func (s *seen) Request(method, route string, status int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if took <= 0 {
		route += " took nothing"
	}
	s.all = append(s.all, fmt.Sprintf("%s %s %d", method, route, status))
}

func (s *seen) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

// TestRequestsAreObserved: under the template of their route, whatever their path is.
func TestRequestsAreObserved(t *testing.T) {
	s, o := newCutOff(t), &seen{}
	s.Observe(o)
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/live", "GET /live 200"},
		{"HEAD", "/live", "HEAD /live 200"},
		{"POST", "/engines/provision", "POST /engines/provision 401"},
		{"POST", "/engines/alice%2Fbob/admit", "POST /engines/{user_id}/admit 401"},
		{"DELETE", "/engines/alice", "DELETE /engines/{user_id} 401"},
		{"POST", "/engines/alice/no-such-action", "POST none 404"},
		{"POST", "/engines/alice", "POST none 405"},
		{"GET", "/alice", "GET none 404"},
		{"ALICE", "/live", "other none 405"},
		{"POST", "/products/p/rotate-platform-key", "POST /products/{product_id}/rotate-platform-key 401"},
		{"DELETE", "/unreachable-volumes/e", "DELETE /unreachable-volumes/{engine_id} 401"},
	} {
		s.send(c.method, c.path, "")
		if got := o.take(); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s %s: observed %q, want %q", c.method, c.path, got, c.want)
		}
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(gone, "GET", "/engines", nil)
	r.Header.Set("X-Platform-Key", secrets.NewPlatformKey())
	s.answer(r)
	if got := o.take(); !slices.Equal(got, []string{"GET /engines 499"}) {
		t.Errorf("of a caller that disconnected: %q", got)
	}
	if n := s.InFlight(); n != 0 {
		t.Errorf("%d requests are in progress", n)
	}
}

// TestRoutesAreDocumented: the templates of the routes are the paths of the document.
func TestRoutesAreDocumented(t *testing.T) {
	s, o := newCutOff(t), &seen{}
	s.Observe(o)
	var want, got []string
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	operationsOf(t, func(method, template string) {
		want = append(want, method+" "+template)
		s.answer(httptest.NewRequestWithContext(cut, method, strings.NewReplacer("{", "", "}", "").Replace(template), nil))
		route := o.take()[0]
		got = append(got, route[:strings.LastIndex(route, " ")])
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("documented (-), observed (+):\n%s", diff)
	}
}

// TestAccessLog: one line per request, with what an operator needs and without the path.
func TestAccessLog(t *testing.T) {
	s := newCutOff(t)
	var out bytes.Buffer
	s.LogRequests(hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: true}))
	s.send("POST", "/engines/a-secret-user/admit", "", "X-Platform-Key", "a-secret-key", "X-Request-Id", "id-1")
	s.send("GET", "/a-secret-path?a-secret-query", "", "X-Request-Id", "id-2")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || strings.Contains(out.String(), "a-secret") {
		t.Fatalf("got\n%s", out.String())
	}
	for i, want := range []map[string]any{
		{"@level": "info", "method": "POST", "route": "/engines/{user_id}/admit", "status": 401.0, "product": "", "admin": "", "request_id": "id-1", "remote": "192.0.2.1:1234"},
		{"@level": "info", "method": "GET", "route": "none", "status": 404.0, "product": "", "admin": "", "request_id": "id-2", "remote": "192.0.2.1:1234"},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatal(err)
		}
		if ms, ok := got["ms"].(float64); !ok || ms < 0 {
			t.Errorf("ms is %v", got["ms"])
		}
		for _, name := range []string{"ms", "@message", "@timestamp", "@module"} {
			delete(got, name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("line %d: want (-), got (+):\n%s", i+1, diff)
		}
	}
}
