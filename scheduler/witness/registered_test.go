package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// TestRebuildRegistered: the row of an engine with a registered volume is rebuilt with that
// volume, also if the previous one exists.
func TestRebuildRegistered(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	old, own := &cluster.Volume{ID: "old", Name: "engine-e", NodeID: "gone", Path: "/v/old"}, &cluster.Volume{ID: "new", Name: "engine-e.r2", NodeID: "n", Path: "/v/old"}
	w := &Evidence{
		id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Owner: owner, Version: 1, ID: "k"}}, volumes: []*cluster.Volume{old, own},
		variable: &cluster.Variable{Witness: &cluster.Witness{EngineID: "e", ProductID: "p", UserID: "u", VolumeID: "new"}}, job: &jobs.Engine{EngineID: "e", ProductID: "p", UserID: "u"},
	}
	r := w.JudgeLost(time.Now(), true)
	if r.Verdict != Rebuild || r.Row.VolumeID != "new" || r.Row.VolumeName != "engine-e.r2" || r.Row.NodeID != "n" || r.Row.FreshVolumeName() != "engine-e.r3" {
		t.Errorf("%s (%s): %+v", r.Verdict, r.Why, r.Row)
	}
	w.row = r.Row.Clone()
	w.row.VolumeID, w.row.NodeID, w.row.VolumeName = "older", "older", ""
	if r := w.JudgeRow(time.Now(), true); r.Verdict != Correct || r.Row.VolumeID != "new" || r.Row.VolumeName != "engine-e.r2" || r.Row.NodeID != "n" {
		t.Errorf("a row from before: %s %+v", r.Verdict, r.Row)
	}
	w.row, w.volumes = r.Row.Clone(), []*cluster.Volume{old} // an earlier list
	if r := w.JudgeRow(time.Now(), true); r.Row != nil && r.Row.VolumeID != "new" {
		t.Errorf("a list from before: %s %+v", r.Verdict, r.Row)
	}
	w.volumes, w.variable = []*cluster.Volume{old, own}, nil
	if r := w.JudgeLost(time.Now(), true); r.Verdict != Quarantine {
		t.Errorf("with two volumes and nothing that names one: %s", r.Verdict)
	}
}
