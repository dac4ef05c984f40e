package reconcile

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// TestPlanLostVolume: a pass reports volumes that Nomad has lost and touches nothing of
// them; a leftover volume on a node that is gone is no second brain.
func TestPlanLostVolume(t *testing.T) {
	id := testID(testIDPrefix, 1)
	row := &engine.Row{EngineID: id, ProductID: "p", UserID: "u", State: engine.Stopped, VolumeID: "new", VolumeName: engine.JobID(id) + ".r2"}
	w := func() *world {
		return &world{
			deployment: testDeployment, deploymentID: testDeploymentID, rows: []*engine.Row{row}, keys: []string{id}, quotas: map[string]registry.Quota{"p": {Count: 1}},
			silent: map[string]bool{"gone": true}, missing: map[string]error{},
		}
	}
	old, own := &cluster.Volume{ID: "old", Name: engine.JobID(id), NodeID: "gone"}, &cluster.Volume{ID: "new", Name: row.VolumeName, NodeID: "n"}
	acts := func(w *world) (acts []Act) {
		for _, a := range plan(w) {
			acts = append(acts, a.Act)
		}
		return acts
	}
	lost := w()
	lost.lost = map[string]bool{id: true}
	if got := acts(lost); !cmp.Equal(got, []Act{ActReport}) {
		t.Errorf("lost: %v", got)
	}
	beside := w()
	beside.volumes = []*cluster.Volume{old, own}
	if got := acts(beside); len(got) > 0 {
		t.Errorf("with another one on a node that is gone: %v", got)
	}
	beside.silent = nil
	if got := acts(beside); !cmp.Equal(got, []Act{ActReport}) {
		t.Errorf("beside one on a node that is up: %v", got)
	}
}
