package scheduler

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// TestNodesWith: every node is there, with all six states, and a node that Nomad has
// forgotten is last, with the engines that are recorded on it.
func TestNodesWith(t *testing.T) {
	got := nodesWith(
		[]cluster.Node{{ID: "2", Name: "b", Status: "ready", Eligible: true}, {ID: "1", Name: "b", Status: "down"}, {ID: "3", Name: "a", Status: "ready"}},
		map[string]registry.NodeCounts{"2": {ByState: map[engine.State]int{engine.Running: 4, engine.Failed: 1}, Warm: 2}, "0": {ByState: map[engine.State]int{engine.Sleeping: 3}}},
		[]*registry.PooledVolume{{NodeID: "2", VolumeID: "v"}, {NodeID: "2"}, {NodeID: "2", VolumeID: "w"}, {NodeID: "gone", VolumeID: "x"}},
	)
	type row struct {
		id                     string
		known                  bool
		running, failed, slept int
		states, warm, ready    int
	}
	var rows []row
	for _, n := range got {
		rows = append(rows, row{n.ID, n.Known(), n.Engines[engine.Running], n.Engines[engine.Failed], n.Engines[engine.Sleeping], len(n.Engines), n.WarmEngines, n.ReadyVolumes})
	}
	want := []row{{"3", true, 0, 0, 0, 6, 0, 0}, {"1", true, 0, 0, 0, 6, 0, 0}, {"2", true, 4, 1, 0, 6, 2, 2}, {"0", false, 0, 0, 3, 6, 0, 0}}
	if diff := cmp.Diff(want, rows, cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestAgentState(t *testing.T) {
	agents := map[string]bool{"alive": true, "dead": false}
	for name, want := range map[string]AgentState{"alive": AgentOK, "dead": AgentFailing, "unlisted": AgentUnknown, "": AgentUnknown} {
		if got := agentState(name, agents); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}
