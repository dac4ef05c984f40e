package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/septemberai/orch/engine"
)

// TestEveryRequestEnds: a call returns within its time limit, whatever it waits for, and
// before its connection is closed.
func TestEveryRequestEnds(t *testing.T) {
	s := newCutOff(t)
	for _, tc := range []struct {
		method, path string
		limit        time.Duration
	}{
		{"GET", "/engines/u", readWithin},
		{"GET", "/status", readWithin},
		{"GET", "/reconcile", s.longest},
		{"GET", "/registry/recover", s.longest},
		{"POST", "/engines/u/admit", s.longest},
		{"DELETE", "/engines/u", s.longest},
	} {
		t.Run(tc.method+tc.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				outside := s.outages
				s.outages = newOutages(s.log, s.scheduler.Health) // its goroutines must end in this test
				defer func() { s.outages.close(); s.outages = outside }()
				waits := s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					s.serve(w, r, "", func(_ http.ResponseWriter, r *http.Request, _ string) error {
						<-r.Context().Done()
						return r.Context().Err()
					})
				}))
				began, w := time.Now(), httptest.NewRecorder()
				waits.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil).WithContext(t.Context()))
				want(t, w, http.StatusServiceUnavailable, engine.BackendUnavailable)
				if took := time.Since(began); took != tc.limit || took >= s.http.WriteTimeout {
					t.Errorf("returned after %s, want %s, and before %s", took, tc.limit, s.http.WriteTimeout)
				}
			})
		})
	}
}
