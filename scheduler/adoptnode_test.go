package scheduler

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
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
