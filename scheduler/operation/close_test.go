package operation

import (
	"testing"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

func TestSettle(t *testing.T) {
	b, now := engine.Backoff{Base: time.Second, Max: time.Minute}, time.Now()
	for _, c := range []struct {
		name     string
		state    engine.State
		op       engine.Operation
		attempts int
	}{
		{"Failed", engine.Failed, engine.Operation{Undo: string(engine.BootTimeout)}, 2},
		{"CanaryFailed", engine.Failed, engine.Operation{Undo: string(engine.BootTimeout), Canary: true}, 1},
		{"NoRoom", engine.Failed, engine.Operation{Undo: string(engine.CapacityExhausted)}, 1},
		{"VaultDown", engine.Failed, engine.Operation{Undo: string(engine.BackendUnavailable)}, 1},
		{"Running", engine.Running, engine.Operation{}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.op.Kind, c.op.Action = engine.OpStart, audit.ActionAutoRestartStart
			row := &engine.Row{State: c.state, Desired: engine.Running, Restarts: &engine.Restarts{Attempts: 2}}
			settleRestarts(b, row, &c.op, now)
			if row.Restarts == nil || row.Restarts.Attempts != c.attempts || row.RunningSince.IsZero() == (c.state == engine.Running) {
				t.Errorf("got %+v, running since %s", row.Restarts, row.RunningSince)
			}
		})
	}
	row := &engine.Row{State: engine.Stopped, Desired: engine.Stopped, Restarts: &engine.Restarts{Attempts: 2}}
	if settleRestarts(b, row, &engine.Operation{Kind: engine.OpStart}, now); row.Restarts != nil {
		t.Error("an engine whose start was undone would be restarted")
	}
}

// A restore that failed before it ended the engine's process leaves a frozen one as it is.
func TestCloseOfUntouched(t *testing.T) {
	frozen := &engine.Frozen{AllocID: "a"}
	plans := &Plans{Forward: map[engine.OpKind][]Step{engine.OpRestore: {{Name: "fetch"}}}, Undo: map[engine.OpKind][]Step{engine.OpRestore: {{Name: "undo"}}}}
	for _, ended := range []bool{false, true} {
		row := &engine.Row{State: engine.Provisioning, Desired: engine.Running, Frozen: frozen, Op: &engine.Operation{
			Kind: engine.OpRestore, Step: "undo", Undo: string(engine.SnapshotCorrupt), From: engine.Sleeping, Restoring: &engine.Restoring{Ended: ended},
		}}
		Close(plans, engine.Backoff{}, row, time.Now())
		if row.State != engine.Sleeping || (row.Frozen == nil) != ended {
			t.Errorf("ended %t: %s, %+v", ended, row.State, row.Frozen)
		}
	}
}

// An engine whose process was ended for a restore or a move that failed is started again
// without a wait, but not one that fails by itself.
func TestCloseOfEnded(t *testing.T) {
	undo := []Step{{Name: "undo"}}
	plans := &Plans{Undo: map[engine.OpKind][]Step{engine.OpRestore: undo, engine.OpMove: undo}}
	for _, kind := range []engine.OpKind{engine.OpRestore, engine.OpMove} {
		for _, from := range []engine.State{engine.Running, engine.Failed} {
			had := &engine.Restarts{Attempts: 2, NextAt: time.Now().Add(time.Hour)}
			row := &engine.Row{State: from, Desired: engine.Running, Restarts: had, Op: &engine.Operation{
				Kind: kind, Step: "undo", Undo: string(engine.BackendRefused), From: from, Restoring: &engine.Restoring{Ended: true},
			}}
			Close(plans, engine.Backoff{Base: time.Minute, Max: time.Hour, MaxAttempts: 9}, row, time.Now())
			if row.State != engine.Failed || row.Desired != engine.Running || (row.Restarts == nil) != (from == engine.Running) {
				t.Errorf("%s from %s: %s, %+v", kind, from, row.State, row.Restarts)
			}
		}
	}
}
