package pools

import (
	"testing"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestRegistrationsComeFirst: evaluations that a caller waits for go before those of all
// jobs of a node, which have their jobs' own priority.
func TestRegistrationsComeFirst(t *testing.T) {
	t.Parallel()
	c := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"}).Product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	n := harness.OpenStores(t, harness.Shared).Nomad
	job, _, err := n.Jobs().Info(engine.JobID(e.EngineID), nil)
	if err != nil {
		t.Fatal(err)
	}
	evals, _, err := n.Jobs().Evaluations(*job.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	registrations := 0
	for _, eval := range evals {
		if eval.TriggeredBy == "job-register" {
			registrations++
			if eval.Priority <= *job.Priority {
				t.Errorf("a registration is evaluated with priority %d, the job's is %d", eval.Priority, *job.Priority)
			}
		}
	}
	if registrations < 2 {
		t.Errorf("%d registrations, want those of provision and stop", registrations)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Error(err)
	}
}
