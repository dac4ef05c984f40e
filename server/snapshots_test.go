package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

func TestLabel(t *testing.T) {
	for label, ok := range map[string]bool{
		"": true, "before the import": true, strings.Repeat("é", 100): true, strings.Repeat("é", 101): false, "a\nb": false, "\x00": false, "\u0085": false, "\u202e": true,
	} {
		if err := (&snapshotBody{Label: label}).check(); (err == nil) != ok {
			t.Errorf("%q: %v", label, err)
		}
	}
}

// TestMayTakeLong: a change that takes longer than a call may wait gets 202, with and
// without a preference, and before the call's time limit.
func TestMayTakeLong(t *testing.T) {
	s := newCutOff(t)
	for _, c := range []struct {
		prefer  string
		waits   time.Duration
		applied string
	}{
		{"", s.longest - answerMargin, ""}, {"respond-async", 0, "respond-async"}, {"wait=7", 7 * time.Second, "wait=7"}, {"wait=100000", s.longest - answerMargin, "wait=100000"},
	} {
		t.Run(c.prefer, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				row := &engine.Row{EngineID: "e", UserID: "a/b", State: engine.Running, Op: &engine.Operation{ID: "o", Kind: engine.OpSnapshot}}
				change := s.mayTakeLong(func(_ http.ResponseWriter, r *http.Request, _ string) error {
					for {
						if err := operation.Impatient(r.Context(), row); err != nil {
							return err
						}
						if r.Context().Err() != nil {
							return r.Context().Err()
						}
						time.Sleep(time.Millisecond)
					}
				})
				r := httptest.NewRequest(http.MethodPost, "/engines/a%2Fb/snapshots", nil).WithContext(t.Context())
				if c.prefer != "" {
					r.Header.Set("Prefer", c.prefer)
				}
				began, w := time.Now(), httptest.NewRecorder()
				s.serve(w, r, "a/b", change)
				h := w.Header()
				if w.Code != http.StatusAccepted || h.Get("Location") != "/engines/a%2Fb" || h.Get("Preference-Applied") != c.applied || !strings.Contains(w.Body.String(), `"kind":"snapshot"`) {
					t.Errorf("got %d %v %s", w.Code, h, w.Body)
				}
				if took := time.Since(began); took < c.waits || took > c.waits+time.Second {
					t.Errorf("it took %s, want %s", took, c.waits)
				}
			})
		})
	}
}
