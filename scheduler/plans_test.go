package scheduler

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Step names are in rows: a rolling upgrade finds those of the version before.
// Whoever changes a name or an order has to say what becomes of such rows.
func TestPlans(t *testing.T) {
	names := func(plans map[registry.OpKind][]step) map[registry.OpKind][]string {
		got := map[registry.OpKind][]string{}
		for kind, steps := range plans {
			for _, st := range steps {
				got[kind] = append(got[kind], st.name)
			}
		}
		return got
	}
	want := map[registry.OpKind][]string{
		registry.OpProvision: {"volume", "key", "variable", "register", "boot"},
		registry.OpStart:     {"quiesce", "drain", "variable", "register", "boot"},
		registry.OpStop:      {"scale-down", "drain"},
		registry.OpSleep:     {"scale-down", "drain"},
		registry.OpRecover:   {"boot"},
		registry.OpRestart:   {"scale-down", "drain", "variable", "register", "boot"},
		registry.OpRotateKey: {"new-key", "variable", "proof", "retire"},
		registry.OpDestroy:   {"settle", "scale-down", "drain", "purge", "volume", "variable", "key", "row"},
	}
	if diff := cmp.Diff(want, names(plans)); diff != "" {
		t.Errorf("plans (-want +got):\n%s", diff)
	}
	want = map[registry.OpKind][]string{
		registry.OpProvision: {"undo-register"},
		registry.OpStart:     {"undo-register"},
		registry.OpRotateKey: {"undo-new-key"},
		registry.OpRecover:   {"undo-recover"},
		registry.OpRestart:   {"undo-register"},
	}
	if diff := cmp.Diff(want, names(undoing)); diff != "" {
		t.Errorf("undoing (-want +got):\n%s", diff)
	}
	want = map[registry.OpKind][]string{
		registry.OpProvision: {"relocate", "own", "burn", "another-port"},
		registry.OpSleep:     {"freeze"},
		registry.OpStart:     {"thaw", "another-port"},
		registry.OpRestart:   {"another-port"},
	}
	if diff := cmp.Diff(want, names(detours)); diff != "" {
		t.Errorf("detours (-want +got):\n%s", diff)
	}
}

// An operation ends in a state to which the row may legally go from every state
// that it can have begun in, however it went.
func TestFinish(t *testing.T) {
	for _, c := range []struct {
		kind registry.OpKind
		from registry.State // of the row while the operation is under way
		was  registry.State // of the row before
		undo Code
		want registry.State
	}{
		{registry.OpProvision, registry.Provisioning, "", "", registry.Running},
		{registry.OpProvision, registry.Provisioning, "", BootTimeout, registry.Failed},
		{registry.OpProvision, registry.Provisioning, "", EngineBootFailed, registry.Failed},
		{registry.OpStart, registry.Provisioning, registry.Stopped, "", registry.Running},
		{registry.OpSleep, registry.Running, registry.Running, "", registry.Sleeping},
		{registry.OpRecover, registry.Provisioning, registry.Failed, "", registry.Running},
		{registry.OpRecover, registry.Provisioning, registry.Failed, BootTimeout, registry.Failed},
		{registry.OpRecover, registry.Provisioning, registry.Failed, BackendUnavailable, registry.Failed},
		{registry.OpStart, registry.Provisioning, registry.Stopped, CapacityExhausted, registry.Stopped},
		{registry.OpStart, registry.Provisioning, registry.Sleeping, PortExhaustion, registry.Sleeping},
		{registry.OpStart, registry.Provisioning, registry.Failed, BackendUnavailable, registry.Failed},
		{registry.OpStart, registry.Provisioning, registry.Stopped, EngineBootFailed, registry.Failed},
		{registry.OpRestart, registry.Running, registry.Running, "", registry.Running},
		{registry.OpRestart, registry.Running, registry.Running, BootTimeout, registry.Failed},
		{registry.OpRestart, registry.Running, registry.Running, CapacityExhausted, registry.Failed},
		{registry.OpStop, registry.Running, registry.Running, "", registry.Stopped},
		{registry.OpStop, registry.Failed, registry.Failed, "", registry.Stopped},
		{registry.OpStop, registry.Sleeping, registry.Sleeping, "", registry.Stopped},
		{registry.OpRotateKey, registry.Running, registry.Running, "", registry.Running},
		{registry.OpRotateKey, registry.Running, registry.Running, BackendUnavailable, registry.Running},
	} {
		// However it went, but for a freeze, no process is frozen at its end.
		frozen := func(step string) bool {
			o := &operation{s: &Scheduler{}, row: &registry.Engine{
				State: c.from, Desired: registry.Running, Frozen: &registry.Frozen{},
				Op: &registry.Op{Kind: c.kind, Step: step, From: c.was, Undo: string(c.undo)},
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
			o := &operation{s: &Scheduler{opts: Options{Restart: engine.Backoff{Base: time.Second, Max: time.Minute}}}, row: &registry.Engine{
				State: c.from, Desired: registry.Running, URL: "http://engine", AllocID: "allocation",
				Op: &registry.Op{Kind: c.kind, From: c.was, Undo: string(c.undo), Reason: "why"},
			}}
			o.finish()
			if o.row.Op != nil {
				t.Error("the operation is still in the row")
			}
			if o.row.State != c.want {
				t.Errorf("state %s, want %s", o.row.State, c.want)
			}
			if !registry.CanMove(c.from, o.row.State) {
				t.Errorf("illegal move from %s to %s", c.from, o.row.State)
			}
			if running := o.row.State == registry.Running; (o.row.URL != "") != running || (o.row.AllocID != "") != running {
				t.Errorf("state %s with url %q and allocation %q", o.row.State, o.row.URL, o.row.AllocID)
			}
			if o.row.State == registry.Running && o.row.Reason != "" {
				t.Errorf("running with reason %q", o.row.Reason)
			}
		})
	}
}

// Only what was running is frozen, and only what is frozen goes on.
func TestFirstStep(t *testing.T) {
	for kind, forward := range plans {
		for _, from := range registry.States {
			for _, frozen := range []*registry.Frozen{nil, {}} {
				want := forward[0].name
				switch {
				case frozen != nil && kind == registry.OpStart:
					want = "thaw"
				case frozen != nil && kind == registry.OpSleep && from == registry.Running:
					want = "freeze"
				}
				op := &registry.Op{Kind: kind, From: from}
				if got := firstStep(&registry.Engine{Frozen: frozen}, op); got != want {
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
		if kind == registry.OpProvision || kind == registry.OpStart {
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
			if !knownStep(&registry.Op{Kind: kind, Step: st.name}) {
				t.Errorf("%s of %s is not known", st.name, kind)
			}
		}
		if knownStep(&registry.Op{Kind: kind, Step: "hibernate"}) {
			t.Errorf("%s knows a step that there is not", kind)
		}
	}
	if knownStep(&registry.Op{Kind: "upgrade", Step: "boot"}) {
		t.Error("a kind that there is not is known")
	}
}
