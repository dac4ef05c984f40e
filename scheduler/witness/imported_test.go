package witness

import (
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// TestUnfilledVolume: the volume of an import that did not end is nobody's brain, because
// perhaps only a part of it is there, whatever becomes of the registry meanwhile. When the
// engine was started with it, it is the brain.
func TestUnfilledVolume(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	v := &cluster.Volume{ID: "v2", Name: "engine-e.v2", NodeID: "a", Path: "/v2"}
	evidence := func() *Evidence {
		return &Evidence{id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Owner: owner, Version: 3, ID: "k"}}, volumes: []*cluster.Volume{v}}
	}
	started := func() *Evidence {
		e := evidence()
		e.variable = &cluster.Variable{Witness: &cluster.Witness{EngineID: "e", ProductID: "p", UserID: "u", Image: "i", VolumeID: "v2"}}
		e.job = &jobs.Engine{EngineID: "e", ProductID: "p", UserID: "u", Image: "i", Count: 1}
		return e
	}
	now := time.Now()
	for _, back := range []bool{false, true} {
		if r := evidence().JudgeLost(now, back); r.Verdict != Quarantine {
			t.Errorf("without a row: %+v", r)
		}
		if r := started().JudgeLost(now, back); r.Verdict != Rebuild || r.Row.VolumeID != "v2" {
			t.Errorf("started, without a row: %+v", r)
		}
	}
	// The row of the import was restored from a backup.
	row := engine.Row{
		EngineID: "e", ProductID: "p", UserID: "u", State: engine.Provisioning, Desired: engine.Running, Reason: engine.ReasonBrainMissing, Image: "i",
		Op: &engine.Operation{Kind: engine.OpRestore, Restoring: &engine.Restoring{Import: true, Former: &engine.Place{}, Target: engine.Place{NodeID: "a", VolumeID: "v2", VolumeName: "engine-e.v2"}}},
	}
	e := evidence()
	e.row = row.Clone()
	if r := e.JudgeRow(now, true); r.Verdict != Correct || r.Row.VolumeID != "" || r.Row.State != engine.Failed || r.Row.Desired != engine.Stopped || r.Row.Reason != engine.ReasonBrainMissing || !r.Row.HasLeft("v2") {
		t.Errorf("%s: %+v", r.Verdict, r.Row)
	}
	if e := evidence(); e.Brain() != nil {
		t.Error("it is a brain")
	}
	e = started()
	e.row = row.Clone()
	if r := e.JudgeRow(now, true); r.Verdict != Correct || r.Row.VolumeID != "v2" || r.Row.Desired != engine.Running || r.Row.HasLeft("v2") {
		t.Errorf("started: %s: %+v", r.Verdict, r.Row)
	}
}
