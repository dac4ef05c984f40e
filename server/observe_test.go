package server

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
