package scheduler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// TestSettleAdopted: what was to run is started by the service, what was to stop is
// stopped, and nothing of its process is left in a row.
func TestSettleAdopted(t *testing.T) {
	waiting := func(kind registry.OpKind, step string) *registry.Op {
		return &registry.Op{Kind: kind, Step: step, KeyVersion: 2, KeyID: "new"}
	}
	for _, c := range []struct {
		name     string
		row      registry.Engine
		may      bool
		state    registry.State
		desired  registry.State
		reason   string
		keyAfter string
	}{
		{"Running", registry.Engine{State: registry.Running, Desired: registry.Running}, true, registry.Failed, registry.Running, engine.ReasonAdopted, "old"},
		{"Failed", registry.Engine{State: registry.Failed, Desired: registry.Running, Reason: engine.ReasonNodeDown, Restarts: &registry.Restarts{GaveUp: true}}, true, registry.Failed, registry.Running, engine.ReasonAdopted, "old"},
		{"FailedAndStopped", registry.Engine{State: registry.Failed, Desired: registry.Stopped}, true, registry.Stopped, registry.Stopped, "", "old"},
		{"Stopped", registry.Engine{State: registry.Stopped, Desired: registry.Stopped}, true, registry.Stopped, registry.Stopped, "", "old"},
		{"Asleep", registry.Engine{State: registry.Sleeping, Desired: registry.Sleeping}, true, registry.Sleeping, registry.Sleeping, "", "old"},
		{"Paused", registry.Engine{State: registry.Sleeping, Desired: registry.Sleeping, Frozen: &registry.Frozen{AllocID: "a"}}, true, registry.Sleeping, registry.Sleeping, "", "old"},
		{"Stopping", registry.Engine{State: registry.Failed, Desired: registry.Stopped, Op: waiting(registry.OpStop, "drain")}, true, registry.Stopped, registry.Stopped, "", "old"},
		{"FallingAsleep", registry.Engine{State: registry.Running, Desired: registry.Sleeping, Op: waiting(registry.OpSleep, "drain")}, true, registry.Sleeping, registry.Sleeping, "", "old"},
		{"Rotating", registry.Engine{State: registry.Running, Desired: registry.Running, Op: waiting(registry.OpRotateKey, "proof")}, true, registry.Failed, registry.Running, engine.ReasonAdopted, "new"},
		{"BeginningToStop", registry.Engine{State: registry.Running, Op: waiting(registry.OpStop, "scale-down")}, false, "", "", "", ""},
		{"Starting", registry.Engine{State: registry.Provisioning, Op: waiting(registry.OpStart, "drain")}, false, "", "", "", ""},
		{"Interrupted", registry.Engine{State: registry.Provisioning}, false, "", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := c.row.Clone()
			row.KeyVersion, row.KeyID, row.AllocID, row.URL, row.SleepPending, row.Vanished = 1, "old", "a", "u", "s", &registry.Vanished{AllocID: "a"}
			if may := mayAdopt(row); may != c.may {
				t.Fatalf("may be adopted: %t", may)
			}
			if !c.may {
				return
			}
			settleAdopted(row)
			want := &registry.Engine{State: c.state, Desired: c.desired, Reason: c.reason, KeyVersion: map[string]int{"old": 1, "new": 2}[c.keyAfter], KeyID: c.keyAfter}
			if diff := cmp.Diff(want, row, cmpopts.IgnoreUnexported(registry.Engine{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if !registry.CanMove(c.row.State, row.State) {
				t.Errorf("no row may go from %s to %s", c.row.State, row.State)
			}
		})
	}
}

// TestBrainDirectory: no other directory is ever removed.
func TestBrainDirectory(t *testing.T) {
	const id = "5c1d64b0-6f1e-41fb-8a0b-33b7f4cd1f0e"
	for path, want := range map[string]bool{
		"/var/lib/nomad/host_volumes/" + id: true, "/v/" + id: true,
		"/" + id: false, id: false, "v/" + id: false, "/v/" + id + "/": false, "/v/" + id + "/..": false, "/v/" + id + "x": false, "/": false, "": false, "/v": false, "//" + id: false,
		"/v/5C1D64B0-6f1e-41fb-8a0b-33b7f4cd1f0e": false, "/v\n/" + id + "\n": false,
	} {
		if got := brainDirectory.MatchString(path); got != want {
			t.Errorf("%q: %t", path, got)
		}
	}
}

// TestPlanLostVolume: a pass reports what Nomad has lost and touches nothing of it; a
// volume that is left on a node that is gone is no second brain.
func TestPlanLostVolume(t *testing.T) {
	id := testID(testBrand, 1)
	row := &registry.Engine{EngineID: id, ProductID: "p", UserID: "u", State: registry.Stopped, VolumeID: "new", VolumeName: registry.JobID(id) + ".r2"}
	w := func() *world {
		return &world{
			deployment: testDeployment, deploymentID: testDeploymentID, rows: []*registry.Engine{row}, keys: []string{id}, quotas: map[string]registry.Quota{"p": {Count: 1}},
			silent: map[string]bool{"gone": true}, missing: map[string]error{},
		}
	}
	old, own := &cluster.Volume{ID: "old", Name: registry.JobID(id), NodeID: "gone"}, &cluster.Volume{ID: "new", Name: row.VolumeName, NodeID: "n"}
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
		t.Errorf("beside one on a node that is gone: %v", got)
	}
	beside.silent = nil
	if got := acts(beside); !cmp.Equal(got, []Act{ActReport}) {
		t.Errorf("beside one on a node that is up: %v", got)
	}
}

// TestRebuildRegistered: the row of an engine with a registered volume is made anew
// with that, also beside the one before.
func TestRebuildRegistered(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	old, own := &cluster.Volume{ID: "old", Name: "engine-e", NodeID: "gone", Path: "/v/old"}, &cluster.Volume{ID: "new", Name: "engine-e.r2", NodeID: "n", Path: "/v/old"}
	w := &witnesses{
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
	w.row, w.volumes = r.row.Clone(), []*cluster.Volume{old} // a list from before
	if r := w.judgeRow(time.Now(), true); r.row != nil && r.row.VolumeID != "new" {
		t.Errorf("a list from before: %s %+v", r.act, r.row)
	}
	w.volumes, w.variable = []*cluster.Volume{old, own}, nil
	if r := w.judgeLost(time.Now(), true); r.act != ActQuarantine {
		t.Errorf("with two volumes and nothing that names one: %s", r.act)
	}
}
