package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// TestRowFromARestore: a row from the middle of a restore that was undone since gets the
// brain that the engine has, and does not list it as one that it has left. The other volume
// is discarded.
func TestRowFromARestore(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	former, target := &cluster.Volume{ID: "v1", Name: "engine-e", NodeID: "a", Path: "/v1"}, &cluster.Volume{ID: "v2", Name: "engine-e.v2", NodeID: "b", Path: "/v2"}
	at := func(v *cluster.Volume) engine.Place {
		p := engine.Place{NodeID: v.NodeID, VolumeID: v.ID, VolumePath: v.Path}
		if v.Name != "engine-e" {
			p.VolumeName = v.Name
		}
		return p
	}
	w := &Evidence{
		id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Owner: owner, Version: 1, ID: "k"}}, volumes: []*cluster.Volume{former, target},
		variable: &cluster.Variable{Witness: &cluster.Witness{EngineID: "e", ProductID: "p", UserID: "u", VolumeID: "v1"}}, job: &jobs.Engine{EngineID: "e", ProductID: "p", UserID: "u", Count: 1},
	}
	place := at(former)
	w.row = &engine.Row{
		EngineID: "e", ProductID: "p", UserID: "u", State: engine.Running, Desired: engine.Running, KeyVersion: 1, KeyID: "k",
		Op: &engine.Operation{Kind: engine.OpRestore, Restoring: &engine.Restoring{Former: &place, Target: at(target)}},
	}
	w.row.PutAt(at(target))
	for _, lost := range []bool{false, true} { // lost: its node did not respond, so the row has left that volume
		if lost {
			w.row.Discard(place, time.Now())
		}
		r := w.JudgeRow(time.Now(), true)
		if r.Verdict != Correct || r.Row.VolumeID != "v1" || r.Row.VolumeName != "" || r.Row.NodeID != "a" || r.Row.HasLeft("v1") || !r.Row.HasLeft("v2") {
			t.Errorf("%t: %s: %+v", lost, r.Verdict, r.Row)
		}
	}
}
