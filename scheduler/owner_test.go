package scheduler

import (
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/guard"
	"github.com/septemberai/orch/secrets"
)

// TestOwnerIsNotJudgedAtTheStart: a replica that does not know its deployment yet
// quarantines nothing: every secret would name another one.
func TestOwnerIsNotJudgedAtTheStart(t *testing.T) {
	s := &Scheduler{log: hclog.NewNullLogger(), contradicted: map[string]bool{}}
	s.guard = guard.New(guard.Deps{Log: s.log})
	row := &engine.Row{EngineID: "e", ProductID: "p", UserID: "u"}
	err := s.contradiction(t.Context(), row, secrets.Owner{Deployment: "d", ProductID: "p", UserID: "u", EngineID: "e"})
	if AsError(err).Code != engine.BackendUnavailable || len(s.contradicted) > 0 {
		t.Errorf("%v, %v", err, s.contradicted)
	}
}
