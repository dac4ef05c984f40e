package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// Rows contain step names, so during a rolling upgrade there are rows with those of the
// previous version. A change of a name or an order must also handle such rows.
func TestPlans(t *testing.T) {
	names := func(table map[engine.OpKind][]operation.Step) map[engine.OpKind][]string {
		got := map[engine.OpKind][]string{}
		for kind, steps := range table {
			for _, st := range steps {
				got[kind] = append(got[kind], st.Name)
			}
		}
		return got
	}
	want := map[engine.OpKind][]string{
		engine.OpProvision: {"volume", "key", "variable", "register", "boot"},
		engine.OpStart:     {"quiesce", "drain", "variable", "register", "boot"},
		engine.OpStop:      {"scale-down", "drain"},
		engine.OpSleep:     {"scale-down", "drain"},
		engine.OpRecover:   {"boot"},
		engine.OpRestart:   {"scale-down", "drain", "variable", "register", "boot"},
		engine.OpRotateKey: {"new-key", "variable", "proof", "retire"},
		engine.OpDestroy:   {"settle", "scale-down", "drain", "purge", "erase", "volume", "variable", "key", "row"},
		engine.OpSnapshot:  {"upload", "worker", "copy", "send", "store", "clean"},
		engine.OpRestore: {
			"target", "target-volume", "fetch", "clean", "target-ready", "scale-down", "drain", "keep-upload", "keep-worker", "keep-send", "keep-store",
			"new-key", "switch", "variable", "register", "boot", "release",
		},
		engine.OpMove: {
			"target", "target-volume", "turn", "keep-upload", "target-ready", "scale-down", "drain", "keep-worker", "keep-send", "keep-store", "pass", "fetch", "clean",
			"switch", "variable", "register", "boot", "release",
		},
		engine.OpDrill: {"target", "target-volume", "fetch", "clean", "remove"},
	}
	if diff := cmp.Diff(want, names(plans.Forward)); diff != "" {
		t.Errorf("plans (-want +got):\n%s", diff)
	}
	want = map[engine.OpKind][]string{
		engine.OpProvision: {"undo-register"},
		engine.OpStart:     {"undo-register"},
		engine.OpRotateKey: {"undo-new-key"},
		engine.OpRecover:   {"undo-recover"},
		engine.OpRestart:   {"undo-register"},
		engine.OpSnapshot:  {"undo-copy", "undo-worker", "undo-upload"},
		engine.OpRestore:   {"undo-register", "undo-switch", "undo-variable", "undo-worker", "undo-target"},
		engine.OpMove:      {"undo-register", "undo-switch", "undo-variable", "undo-rest", "undo-worker", "undo-target"},
		engine.OpDrill:     {"undo-worker", "undo-remove"},
	}
	if diff := cmp.Diff(want, names(plans.Undo)); diff != "" {
		t.Errorf("undoing (-want +got):\n%s", diff)
	}
	want = map[engine.OpKind][]string{
		engine.OpProvision: {"relocate", "own", "burn", "another-port", "fork-snapshot", "fork-volume", "fetch", "clean", "fork-ready"},
		engine.OpSleep:     {"freeze"},
		engine.OpStart:     {"thaw", "another-port"},
		engine.OpRestart:   {"another-port"},
		engine.OpRestore:   {"another-port"},
		engine.OpMove:      {"another-port"},
	}
	if diff := cmp.Diff(want, names(plans.Detours)); diff != "" {
		t.Errorf("detours (-want +got):\n%s", diff)
	}
}

// Whatever its outcome, an operation ends in a state that is a legal move from every state
// in which it can have begun.
func TestFinish(t *testing.T) {
	for _, c := range []struct {
		kind engine.OpKind
		from engine.State // of the row during the operation
		was  engine.State // of the row before the operation
		undo engine.Code
		want engine.State
	}{
		{engine.OpProvision, engine.Provisioning, "", "", engine.Running},
		{engine.OpProvision, engine.Provisioning, "", engine.BootTimeout, engine.Failed},
		{engine.OpProvision, engine.Provisioning, "", engine.EngineBootFailed, engine.Failed},
		{engine.OpStart, engine.Provisioning, engine.Stopped, "", engine.Running},
		{engine.OpSleep, engine.Running, engine.Running, "", engine.Sleeping},
		{engine.OpRecover, engine.Provisioning, engine.Failed, "", engine.Running},
		{engine.OpRecover, engine.Provisioning, engine.Failed, engine.BootTimeout, engine.Failed},
		{engine.OpRecover, engine.Provisioning, engine.Failed, engine.BackendUnavailable, engine.Failed},
		{engine.OpStart, engine.Provisioning, engine.Stopped, engine.CapacityExhausted, engine.Stopped},
		{engine.OpStart, engine.Provisioning, engine.Sleeping, engine.PortExhaustion, engine.Sleeping},
		{engine.OpStart, engine.Provisioning, engine.Failed, engine.BackendUnavailable, engine.Failed},
		{engine.OpStart, engine.Provisioning, engine.Stopped, engine.EngineBootFailed, engine.Failed},
		{engine.OpRestart, engine.Running, engine.Running, "", engine.Running},
		{engine.OpRestart, engine.Running, engine.Running, engine.BootTimeout, engine.Failed},
		{engine.OpRestart, engine.Running, engine.Running, engine.CapacityExhausted, engine.Failed},
		{engine.OpStop, engine.Running, engine.Running, "", engine.Stopped},
		{engine.OpStop, engine.Failed, engine.Failed, "", engine.Stopped},
		{engine.OpStop, engine.Sleeping, engine.Sleeping, "", engine.Stopped},
		{engine.OpRestore, engine.Running, engine.Running, "", engine.Running},
		{engine.OpRestore, engine.Provisioning, engine.Stopped, "", engine.Running},
		{engine.OpRestore, engine.Running, engine.Running, engine.BootTimeout, engine.Failed},
		{engine.OpRestore, engine.Provisioning, engine.Failed, engine.SnapshotCorrupt, engine.Failed},
		{engine.OpRestore, engine.Provisioning, engine.Stopped, engine.SnapshotCorrupt, engine.Stopped},
		{engine.OpRestore, engine.Provisioning, engine.Sleeping, engine.EngineBootFailed, engine.Sleeping},
		{engine.OpMove, engine.Running, engine.Running, "", engine.Running},
		{engine.OpMove, engine.Running, engine.Running, engine.SnapshotFailed, engine.Failed},
		{engine.OpMove, engine.Sleeping, engine.Sleeping, "", engine.Sleeping},
		{engine.OpMove, engine.Stopped, engine.Stopped, engine.SnapshotFailed, engine.Stopped},
		{engine.OpMove, engine.Failed, engine.Failed, "", engine.Failed},
		{engine.OpRotateKey, engine.Running, engine.Running, "", engine.Running},
		{engine.OpRotateKey, engine.Running, engine.Running, engine.BackendUnavailable, engine.Running},
	} {
		// Whatever its outcome, no process is frozen at its end, except after a freeze.
		frozen := func(step string) bool {
			row := &engine.Row{
				State: c.from, Desired: engine.Running, Frozen: &engine.Frozen{},
				Op: &engine.Operation{Kind: c.kind, Step: step, From: c.was, Undo: string(c.undo), Restoring: &engine.Restoring{Ended: true}},
			}
			operation.Close(&plans, engine.Backoff{}, row, time.Now())
			return row.Frozen != nil
		}
		for _, st := range slices.Concat(plans.Forward[c.kind], plans.Detours[c.kind], plans.Undo[c.kind]) {
			if got := frozen(st.Name); got != (st.Name == stepFreeze) {
				t.Errorf("%s ends after %s: frozen %t", c.kind, st.Name, got)
			}
		}
		t.Run(string(c.kind)+"/"+string(c.was)+"/"+string(c.undo), func(t *testing.T) {
			row := &engine.Row{
				State: c.from, Desired: engine.Running, URL: "http://engine", AllocID: "allocation",
				Op: &engine.Operation{Kind: c.kind, From: c.was, Undo: string(c.undo), Reason: "why", Restoring: &engine.Restoring{Ended: true}},
			}
			operation.Close(&plans, engine.Backoff{Base: time.Second, Max: time.Minute}, row, time.Now())
			if row.Op != nil {
				t.Error("the operation is still in the row")
			}
			if row.State != c.want {
				t.Errorf("state %s, want %s", row.State, c.want)
			}
			if !engine.CanMove(c.from, row.State) {
				t.Errorf("illegal move from %s to %s", c.from, row.State)
			}
			if running := row.State == engine.Running; (row.URL != "") != running || (row.AllocID != "") != running {
				t.Errorf("state %s with url %q and allocation %q", row.State, row.URL, row.AllocID)
			}
			if row.State == engine.Running && row.Reason != "" {
				t.Errorf("running with reason %q", row.Reason)
			}
		})
	}
}

// Only running engines are frozen, and only a start of a frozen engine begins with thaw.
func TestFirstStep(t *testing.T) {
	for kind, forward := range plans.Forward {
		for _, from := range engine.States {
			for _, frozen := range []*engine.Frozen{nil, {}} {
				want := forward[0].Name
				switch {
				case frozen != nil && kind == engine.OpStart:
					want = "thaw"
				case frozen != nil && kind == engine.OpSleep && from == engine.Running:
					want = "freeze"
				}
				op := &engine.Operation{Kind: kind, From: from}
				if got := firstStep(&engine.Row{Frozen: frozen}, op); got != want {
					t.Errorf("%s of a %s engine, frozen %t, begins with %s, want %s", kind, from, frozen != nil, got, want)
				}
			}
		}
	}
}

// The server's write timeout follows from LongestOperation. Callers of a snapshot or a
// restore do not wait for its end (Scheduler.patiently), and nobody calls a move.
func TestLongestOperation(t *testing.T) {
	m := operation.New(operation.Deps{BootTimeout: 90 * time.Second})
	for kind := range plans.Forward {
		limit := m.Limit(kind)
		if slices.Contains([]engine.OpKind{engine.OpSnapshot, engine.OpRestore, engine.OpMove, engine.OpDrill}, kind) { // nobody calls for the last two
			continue
		}
		if kind == engine.OpProvision || kind == engine.OpStart {
			limit += m.BootTimeout
		}
		if longest := m.Longest(); longest < limit {
			t.Errorf("%s may take %s, more than the longest operation, %s", kind, limit, longest)
		}
	}
}

// An operation at a step that this version does not know belongs to a newer version, and is
// left to it.
func TestKnownStep(t *testing.T) {
	for kind, steps := range plans.Forward {
		for _, st := range append(append(slices.Clone(steps), plans.Undo[kind]...), plans.Detours[kind]...) {
			if !plans.Knows(&engine.Operation{Kind: kind, Step: st.Name}) {
				t.Errorf("step %s of %s is not known", st.Name, kind)
			}
		}
		if plans.Knows(&engine.Operation{Kind: kind, Step: "hibernate"}) {
			t.Errorf("an unknown step of %s is known", kind)
		}
	}
	if plans.Knows(&engine.Operation{Kind: "upgrade", Step: "boot"}) {
		t.Error("an unknown kind is known")
	}
}

// A restore that fails before it has ended the process leaves everything of the row as it
// was.
func TestUntouchedByARestore(t *testing.T) {
	for _, from := range []engine.State{engine.Running, engine.Stopped, engine.Sleeping, engine.Failed} {
		row := &engine.Row{State: from, Desired: engine.Stopped, Reason: "why", Frozen: &engine.Frozen{}, Restarts: &engine.Restarts{Attempts: 3}}
		if from != engine.Running {
			row.State = engine.Provisioning
		}
		row.Op = &engine.Operation{Kind: engine.OpRestore, From: from, Undo: string(engine.SnapshotCorrupt), Restoring: &engine.Restoring{}}
		operation.Close(&plans, engine.Backoff{}, row, time.Now())
		if row.State != from || row.Desired != engine.Stopped || row.Reason != "why" || row.Frozen == nil || row.Restarts == nil || row.Restarts.Attempts != 3 {
			t.Errorf("from %s: %+v", from, row)
		}
	}
}

// A drill leaves everything of the row as it was, its last operation included: by that, the
// schedule knows whether an engine that rests has changed since its snapshot.
func TestUntouchedByADrill(t *testing.T) {
	for _, undo := range []engine.Code{"", engine.EngineBusy, engine.SnapshotCorrupt} {
		row := &engine.Row{
			State: engine.Sleeping, Desired: engine.Running, Reason: "why", URL: "http://engine", AllocID: "a", Frozen: &engine.Frozen{}, Restarts: &engine.Restarts{Attempts: 3},
			Last: &engine.Ended{Kind: engine.OpSnapshot}, Drill: &engine.Drill{Failure: "why"},
		}
		want := row.Clone()
		row.Op = &engine.Operation{Kind: engine.OpDrill, Step: "remove", Undo: string(undo), Restoring: &engine.Restoring{}}
		operation.Close(&plans, engine.Backoff{}, row, time.Now())
		if diff := cmp.Diff(want, row); diff != "" {
			t.Errorf("undone by %q (-before +after):\n%s", undo, diff)
		}
	}
}

// The id of a new snapshot is after that of the newest one, whatever the clocks say.
func TestSnapshotIDs(t *testing.T) {
	row := &engine.Row{}
	for range 5 {
		next := newSnapshotID(row)
		if row.Snapshot != nil && next <= row.Snapshot.ID || !brain.IsID(next) {
			t.Fatalf("%s after %+v", next, row.Snapshot)
		}
		row.Snapshot = &engine.SnapshotRef{ID: next}
	}
	row.Snapshot.ID = snapshotID(time.Now().Add(time.Hour), "aaaaaaaaaaaa") // by a clock that was ahead
	if next := newSnapshotID(row); next <= row.Snapshot.ID {
		t.Errorf("%s after %s", next, row.Snapshot.ID)
	}
}
