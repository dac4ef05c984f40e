package scheduler

import (
	"testing"

	"github.com/septemberai/orch/engine"
)

// TestStrayWorkers: only workers of this deployment without an operation are removed.
func TestStrayWorkers(t *testing.T) {
	const deployment = "abcdefxyz"
	mine, other := engine.NewID(deployment), engine.NewID("zzzzzzxyz")
	worker := func(id string) string { return workersOf(id) + "aaaaaaaaaa-1" }
	for name, c := range map[string]struct {
		job  string
		rows []*engine.Row
		want bool
	}{
		"without a row":          {worker(mine), nil, true},
		"without an operation":   {worker(mine), []*engine.Row{{EngineID: mine}}, true},
		"OKOperation":            {worker(mine), []*engine.Row{{EngineID: mine, Op: &engine.Operation{ID: "b"}}}, false},
		"OKOtherDeployment":      {worker(other), nil, false},
		"OKNotAWorker":           {"orch-brain-", nil, false},
		"operation of another":   {worker(mine), []*engine.Row{{EngineID: other, Op: &engine.Operation{}}}, true},
		"OKSomethingElse":        {"orch-brain-x-y", nil, false},
		"OKEngineWithoutAWorker": {"engine-" + mine, nil, false},
	} {
		if got := isStray(c.job, deployment, c.rows); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
