package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
)

// Step names are in rows: a rolling upgrade finds those of the version before.
// Whoever changes a name or an order has to say what becomes of such rows.
func TestPlans(t *testing.T) {
	names := func(plans map[engine.OpKind][]step) map[engine.OpKind][]string {
		got := map[engine.OpKind][]string{}
		for kind, steps := range plans {
			for _, st := range steps {
				got[kind] = append(got[kind], st.name)
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
		engine.OpDestroy:   {"settle", "scale-down", "drain", "purge", "volume", "variable", "key", "row"},
	}
	if diff := cmp.Diff(want, names(plans)); diff != "" {
		t.Errorf("plans (-want +got):\n%s", diff)
	}
	want = map[engine.OpKind][]string{
		engine.OpProvision: {"undo-register"},
		engine.OpStart:     {"undo-register"},
		engine.OpRotateKey: {"undo-new-key"},
		engine.OpRecover:   {"undo-recover"},
		engine.OpRestart:   {"undo-register"},
	}
	if diff := cmp.Diff(want, names(undoing)); diff != "" {
		t.Errorf("undoing (-want +got):\n%s", diff)
	}
	want = map[engine.OpKind][]string{
		engine.OpProvision: {"relocate", "own", "burn", "another-port"},
		engine.OpSleep:     {"freeze"},
		engine.OpStart:     {"thaw", "another-port"},
		engine.OpRestart:   {"another-port"},
	}
	if diff := cmp.Diff(want, names(detours)); diff != "" {
		t.Errorf("detours (-want +got):\n%s", diff)
	}
}

// An operation ends in a state to which the row may legally go from every state
// that it can have begun in, however it went.
func TestFinish(t *testing.T) {
	for _, c := range []struct {
		kind engine.OpKind
		from engine.State // of the row while the operation is under way
		was  engine.State // of the row before
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
		{engine.OpRotateKey, engine.Running, engine.Running, "", engine.Running},
		{engine.OpRotateKey, engine.Running, engine.Running, engine.BackendUnavailable, engine.Running},
	} {
		// However it went, but for a freeze, no process is frozen at its end.
		frozen := func(step string) bool {
			o := &operation{s: &Scheduler{}, row: &engine.Row{
				State: c.from, Desired: engine.Running, Frozen: &engine.Frozen{},
				Op: &engine.Operation{Kind: c.kind, Step: step, From: c.was, Undo: string(c.undo)},
			}}
			o.finish()
			return o.row.Frozen != nil
		}
		for _, st := range slices.Concat(plans[c.kind], detours[c.kind], undoing[c.kind]) {
			if got := frozen(st.name); got != (st.name == stepFreeze) {
				t.Errorf("%s ends after %s: frozen %t", c.kind, st.name, got)
			}
		}
		t.Run(string(c.kind)+"/"+string(c.was)+"/"+string(c.undo), func(t *testing.T) {
			o := &operation{s: &Scheduler{opts: Options{Restart: engine.Backoff{Base: time.Second, Max: time.Minute}}}, row: &engine.Row{
				State: c.from, Desired: engine.Running, URL: "http://engine", AllocID: "allocation",
				Op: &engine.Operation{Kind: c.kind, From: c.was, Undo: string(c.undo), Reason: "why"},
			}}
			o.finish()
			if o.row.Op != nil {
				t.Error("the operation is still in the row")
			}
			if o.row.State != c.want {
				t.Errorf("state %s, want %s", o.row.State, c.want)
			}
			if !engine.CanMove(c.from, o.row.State) {
				t.Errorf("illegal move from %s to %s", c.from, o.row.State)
			}
			if running := o.row.State == engine.Running; (o.row.URL != "") != running || (o.row.AllocID != "") != running {
				t.Errorf("state %s with url %q and allocation %q", o.row.State, o.row.URL, o.row.AllocID)
			}
			if o.row.State == engine.Running && o.row.Reason != "" {
				t.Errorf("running with reason %q", o.row.Reason)
			}
		})
	}
}

// Only what was running is frozen, and only what is frozen goes on.
func TestFirstStep(t *testing.T) {
	for kind, forward := range plans {
		for _, from := range engine.States {
			for _, frozen := range []*engine.Frozen{nil, {}} {
				want := forward[0].name
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

// The server's write timeout follows from LongestOperation.
func TestLongestOperation(t *testing.T) {
	s := &Scheduler{opts: Options{BootTimeout: 90 * time.Second}}
	for kind := range plans {
		limit := s.limit(kind)
		if kind == engine.OpProvision || kind == engine.OpStart {
			limit += s.opts.BootTimeout
		}
		if longest := s.LongestOperation(); longest < limit {
			t.Errorf("%s may take %s, more than the longest operation, %s", kind, limit, longest)
		}
	}
}

// An operation of a newer version, at a step that this one does not know, is left to it.
func TestKnownStep(t *testing.T) {
	for kind, steps := range plans {
		for _, st := range append(append(slices.Clone(steps), undoing[kind]...), detours[kind]...) {
			if !knownStep(&engine.Operation{Kind: kind, Step: st.name}) {
				t.Errorf("%s of %s is not known", st.name, kind)
			}
		}
		if knownStep(&engine.Operation{Kind: kind, Step: "hibernate"}) {
			t.Errorf("%s knows a step that there is not", kind)
		}
	}
	if knownStep(&engine.Operation{Kind: "upgrade", Step: "boot"}) {
		t.Error("a kind that there is not is known")
	}
}
