package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// TestRowServesAsItsJob: whether an engine serves TLS is what its job says, for a row that
// is rebuilt and for one from a backup: by plain HTTP a key would be sent to any process.
func TestRowServesAsItsJob(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	for _, tls := range []bool{true, false} {
		w := &Evidence{
			id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Owner: owner, Version: 1, ID: "k"}}, volumes: []*cluster.Volume{{ID: "v", Name: "engine-e"}},
			job: &jobs.Engine{EngineID: "e", ProductID: "p", UserID: "u", Count: 1, TLS: tls},
		}
		r := w.JudgeLost(time.Now(), true)
		if r.Verdict != Rebuild || r.Row.TLS != tls {
			t.Fatalf("%s (%s): %+v, want TLS %t", r.Verdict, r.Why, r.Row, tls)
		}
		w.row = r.Row.Clone()
		w.row.State, w.row.TLS, w.row.URL = engine.Running, !tls, "an earlier one"
		if r := w.JudgeRow(time.Now(), true); r.Verdict != Correct || r.Row.TLS != tls {
			t.Errorf("a row from before: %s %+v, want TLS %t", r.Verdict, r.Row, tls)
		}
	}
}
