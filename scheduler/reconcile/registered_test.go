package reconcile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
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

// TestRebuildRegistered: the row of an engine with a registered volume is rebuilt with that
// volume, also if the previous one exists.
func TestRebuildRegistered(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	old, own := &cluster.Volume{ID: "old", Name: "engine-e", NodeID: "gone", Path: "/v/old"}, &cluster.Volume{ID: "new", Name: "engine-e.r2", NodeID: "n", Path: "/v/old"}
	w := &Witnesses{
		id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Owner: owner, Version: 1, ID: "k"}}, volumes: []*cluster.Volume{old, own},
		variable: &cluster.Variable{Witness: &cluster.Witness{EngineID: "e", ProductID: "p", UserID: "u", VolumeID: "new"}}, job: &jobs.Engine{EngineID: "e", ProductID: "p", UserID: "u"},
	}
	r := w.judgeLost(time.Now(), true)
	if r.act != ActRebuild || r.row.VolumeID != "new" || r.row.VolumeName != "engine-e.r2" || r.row.NodeID != "n" || r.row.FreshVolumeName() != "engine-e.r3" {
		t.Errorf("%s (%s): %+v", r.act, r.why, r.row)
	}
	w.row = r.row.Clone()
	w.row.VolumeID, w.row.NodeID, w.row.VolumeName = "older", "older", ""
	if r := w.judgeRow(time.Now(), true); r.act != ActCorrect || r.row.VolumeID != "new" || r.row.VolumeName != "engine-e.r2" || r.row.NodeID != "n" {
		t.Errorf("a row from before: %s %+v", r.act, r.row)
	}
	w.row, w.volumes = r.row.Clone(), []*cluster.Volume{old} // an earlier list
	if r := w.judgeRow(time.Now(), true); r.row != nil && r.row.VolumeID != "new" {
		t.Errorf("a list from before: %s %+v", r.act, r.row)
	}
	w.volumes, w.variable = []*cluster.Volume{old, own}, nil
	if r := w.judgeLost(time.Now(), true); r.act != ActQuarantine {
		t.Errorf("with two volumes and nothing that names one: %s", r.act)
	}
}
