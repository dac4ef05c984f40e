package scheduler

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/septemberai/orch/engine"
)

// TestSettleAdopted: the service starts the engines that should run, stops those that
// should be stopped, and no row keeps anything of an old process.
func TestSettleAdopted(t *testing.T) {
	waiting := func(kind engine.OpKind, step string) *engine.Operation {
		return &engine.Operation{Kind: kind, Step: step, KeyVersion: 2, KeyID: "new"}
	}
	for _, c := range []struct {
		name     string
		row      engine.Row
		may      bool
		state    engine.State
		desired  engine.State
		reason   string
		keyAfter string
	}{
		{"Running", engine.Row{State: engine.Running, Desired: engine.Running}, true, engine.Failed, engine.Running, engine.ReasonAdopted, "old"},
		{"Failed", engine.Row{State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonNodeDown, Restarts: &engine.Restarts{GaveUp: true}}, true, engine.Failed, engine.Running, engine.ReasonAdopted, "old"},
		{"FailedAndStopped", engine.Row{State: engine.Failed, Desired: engine.Stopped}, true, engine.Stopped, engine.Stopped, "", "old"},
		{"Stopped", engine.Row{State: engine.Stopped, Desired: engine.Stopped}, true, engine.Stopped, engine.Stopped, "", "old"},
		{"Asleep", engine.Row{State: engine.Sleeping, Desired: engine.Sleeping}, true, engine.Sleeping, engine.Sleeping, "", "old"},
		{"Paused", engine.Row{State: engine.Sleeping, Desired: engine.Sleeping, Frozen: &engine.Frozen{AllocID: "a"}}, true, engine.Sleeping, engine.Sleeping, "", "old"},
		{"Stopping", engine.Row{State: engine.Failed, Desired: engine.Stopped, Op: waiting(engine.OpStop, "drain")}, true, engine.Stopped, engine.Stopped, "", "old"},
		{"FallingAsleep", engine.Row{State: engine.Running, Desired: engine.Sleeping, Op: waiting(engine.OpSleep, "drain")}, true, engine.Sleeping, engine.Sleeping, "", "old"},
		{"Rotating", engine.Row{State: engine.Running, Desired: engine.Running, Op: waiting(engine.OpRotateKey, "proof")}, true, engine.Failed, engine.Running, engine.ReasonAdopted, "new"},
		{"BeginningToStop", engine.Row{State: engine.Running, Op: waiting(engine.OpStop, "scale-down")}, false, "", "", "", ""},
		{"Starting", engine.Row{State: engine.Provisioning, Op: waiting(engine.OpStart, "drain")}, false, "", "", "", ""},
		{"Interrupted", engine.Row{State: engine.Provisioning}, false, "", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := c.row.Clone()
			row.KeyVersion, row.KeyID, row.AllocID, row.URL, row.SleepPending, row.Vanished = 1, "old", "a", "u", "s", &engine.Vanished{AllocID: "a"}
			if may := mayAdopt(row); may != c.may {
				t.Fatalf("may be adopted: %t", may)
			}
			if !c.may {
				return
			}
			settleAdopted(row)
			want := &engine.Row{State: c.state, Desired: c.desired, Reason: c.reason, KeyVersion: map[string]int{"old": 1, "new": 2}[c.keyAfter], KeyID: c.keyAfter}
			if diff := cmp.Diff(want, row, cmpopts.IgnoreFields(engine.Row{}, "Stored")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if !engine.CanMove(c.row.State, row.State) {
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
