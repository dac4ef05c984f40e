package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// TestRebuiltRowKeepsItsIsolation: a restart of the engine, which does not read its
// product's policy, must not run it with less isolation than before.
func TestRebuiltRowKeepsItsIsolation(t *testing.T) {
	for name, e := range map[string]*Evidence{
		"variable": {id: "e", variable: &cluster.Variable{Witness: &cluster.Witness{EngineID: "e", Image: "i", Isolation: engine.IsolationGVisor}}},
		"job":      {id: "e", job: &jobs.Engine{EngineID: "e", Image: "i", Count: 1, Isolation: engine.IsolationGVisor}},
	} {
		t.Run(name, func(t *testing.T) {
			row := e.Rebuilt(secrets.Owner{ProductID: "p", UserID: "u", EngineID: "e"}, time.Now())
			if row.Resources.Isolation != engine.IsolationGVisor {
				t.Errorf("its isolation is %q", row.Resources.Isolation)
			}
		})
	}
}
