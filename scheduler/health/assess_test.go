package health

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

func TestAssess(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	alloc := func(client string) *cluster.Alloc {
		return &cluster.Alloc{ID: "a", Desired: api.AllocDesiredStatusRun, Client: client}
	}
	running, complete, unknown := alloc("running"), alloc("complete"), alloc("unknown")
	crashed, other, stopping := alloc("pending"), alloc("running"), alloc("running")
	crashed.Crash, other.ID, stopping.Desired = 7, "b", api.AllocDesiredStatusStop
	starved := alloc("failed")
	starved.Crash, starved.OutOfMemory = 7, true
	up := &engine.Row{State: engine.Running, Desired: engine.Running, AllocID: "a"}
	failed := func(reason string, r *engine.Restarts) *engine.Row {
		return &engine.Row{State: engine.Failed, Desired: engine.Running, Reason: reason, Restarts: r}
	}
	later := &engine.Restarts{NextAt: now.Add(time.Second)}
	due := &engine.Restarts{NextAt: now, Attempts: 2}
	spent := &engine.Restarts{NextAt: now, Attempts: 3}
	gaveUp := &engine.Restarts{Attempts: 3, GaveUp: true}
	paused := &engine.Row{State: engine.Sleeping, Desired: engine.Sleeping, Frozen: &engine.Frozen{AllocID: "a", Started: 5}}
	frozen, anew := alloc("running"), alloc("running")
	frozen.Started, anew.Started = 5, 6
	for _, c := range []struct {
		name   string
		row    *engine.Row
		alloc  *cluster.Alloc
		node   nodeState
		fails  bool
		want   remedy
		reason string
	}{
		{"Well", up, running, nodeUp, false, remedyNone, ""},
		{"WellOnAClosedNode", up, running, nodeShut, false, remedyNone, ""},
		{"CheckFails", up, running, nodeUp, true, remedyProbe, engine.ReasonUnhealthy},
		{"Crashed", up, crashed, nodeUp, false, remedyFail, engine.ReasonCrashed},
		{"OutOfMemory", up, starved, nodeUp, false, remedyFail, engine.ReasonMemory},
		{"RestartedAfterOutOfMemory", failed(engine.ReasonMemory, later), running, nodeUp, false, remedyRecover, ""},
		{"Ended", up, complete, nodeUp, false, remedyFail, engine.ReasonCrashed},
		{"AnotherAllocation", up, other, nodeUp, false, remedyFail, engine.ReasonCrashed},
		{"JobGone", up, nil, nodeUp, false, remedyFail, engine.ReasonJobMissing},
		{"NodeDown", up, running, nodeSilent, false, remedyFail, engine.ReasonNodeDown},
		{"NodeDownAndFailing", up, running, nodeSilent, true, remedyFail, engine.ReasonNodeDown},
		{"Unknown", up, unknown, nodeUp, false, remedyFail, engine.ReasonNodeDown},
		{"Drained", up, complete, nodeShut, false, remedyFail, engine.ReasonNodeDown},
		{"BeingDrained", up, stopping, nodeShut, false, remedyFail, engine.ReasonNodeDown},
		{"RestartedInPlace", failed(engine.ReasonCrashed, later), running, nodeUp, false, remedyRecover, ""},
		{"NodeIsBack", failed(engine.ReasonNodeDown, later), running, nodeUp, false, remedyRecover, ""},
		{"NodeIsBackWithoutIt", failed(engine.ReasonNodeDown, later), complete, nodeUp, false, remedyRestart, ""},
		{"NodeStillDown", failed(engine.ReasonNodeDown, due), running, nodeSilent, false, remedyNone, ""},
		{"NodeStillDrains", failed(engine.ReasonNodeDown, due), complete, nodeShut, false, remedyNone, ""},
		{"UnhealthyButThere", failed(engine.ReasonUnhealthy, due), running, nodeUp, true, remedyPeek, ""},
		{"BootTimeoutButThere", failed(engine.ReasonBootTimeout, due), running, nodeUp, false, remedyPeek, ""},
		{"NotYet", failed(engine.ReasonCrashed, later), complete, nodeUp, false, remedyWait, ""},
		{"Due", failed(engine.ReasonCrashed, due), complete, nodeUp, false, remedyRestart, ""},
		{"DueWithoutAJob", failed(engine.ReasonJobMissing, due), nil, nodeUp, false, remedyRestart, ""},
		{"Spent", failed(engine.ReasonCrashed, spent), complete, nodeUp, false, remedyGiveUp, ""},
		{"GaveUp", failed(engine.ReasonCrashed, gaveUp), complete, nodeUp, false, remedyNone, ""},
		{"Stopped", &engine.Row{State: engine.Stopped, Desired: engine.Stopped}, complete, nodeUp, false, remedyNone, ""},
		{"Asleep", &engine.Row{State: engine.Sleeping, Desired: engine.Sleeping}, nil, nodeUp, false, remedyNone, ""},
		{"Paused", paused, frozen, nodeUp, true, remedyNone, ""},
		{"PausedOnAClosedNode", paused, frozen, nodeShut, true, remedyNone, ""},
		{"PausedAndTheNodeIsDown", paused, complete, nodeSilent, true, remedyNone, ""},
		{"PausedAndUnknown", paused, unknown, nodeUp, true, remedyNone, ""},
		{"PausedAndItsStartForgotten", paused, running, nodeUp, true, remedyNone, ""},
		{"PausedAndStartedAnew", paused, anew, nodeUp, false, remedySettle, ""},
		{"PausedAndCrashed", paused, crashed, nodeUp, true, remedySettle, ""},
		{"PausedAndEnded", paused, complete, nodeUp, true, remedySettle, ""},
		{"PausedAndDrained", paused, stopping, nodeShut, true, remedySettle, ""},
		{"PausedAndPlacedAnew", paused, other, nodeUp, false, remedySettle, ""},
		{"PausedWithoutAJob", paused, nil, nodeUp, false, remedySettle, ""},
		{"FailedThenStopped", &engine.Row{State: engine.Failed, Desired: engine.Stopped}, complete, nodeUp, false, remedyNone, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, reason := assess(observation{row: c.row, alloc: c.alloc, node: c.node, fails: c.fails, now: now}, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3})
			if got != c.want || reason != c.reason {
				t.Errorf("got %s %q, want %s %q", got, reason, c.want, c.reason)
			}
			busy := c.row.Clone()
			busy.Op = &engine.Operation{}
			if got, _ := assess(observation{row: busy, alloc: c.alloc, node: c.node, fails: c.fails, now: now}, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3}); got != remedyNone {
				t.Errorf("an engine with an operation under way gets %s", got)
			}
		})
	}
}

// In any situation, no engine gets a second process while its first may run, and an engine
// of unknown state is not touched.
func TestAssessIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pick := func(name string, words ...string) string { return rapid.SampledFrom(words).Draw(t, name) }
		now := time.Unix(1e9, 0)
		row := &engine.Row{
			State: rapid.SampledFrom(engine.States).Draw(t, "state"), Desired: rapid.SampledFrom(engine.States).Draw(t, "desired"),
			Reason:  pick("reason", engine.ReasonCrashed, engine.ReasonNodeDown, engine.ReasonUnhealthy, engine.ReasonBootTimeout, engine.ReasonImage, engine.ReasonJobMissing),
			AllocID: "a", Crash: int64(rapid.IntRange(0, 1).Draw(t, "crash")),
		}
		if rapid.Bool().Draw(t, "frozen") {
			row.Frozen = &engine.Frozen{AllocID: "a", Started: 1}
		}
		if rapid.Bool().Draw(t, "restarts") {
			row.Restarts = &engine.Restarts{
				Attempts: rapid.IntRange(0, 4).Draw(t, "attempts"), GaveUp: rapid.Bool().Draw(t, "gave up"),
				NextAt: now.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "next"))),
			}
		}
		s := observation{row: row, now: now, node: nodeState(rapid.IntRange(0, 2).Draw(t, "node")), fails: rapid.Bool().Draw(t, "fails")}
		if rapid.Bool().Draw(t, "alloc") {
			s.alloc = &cluster.Alloc{
				ID: pick("id", "a", "b"), Desired: pick("alloc desired", "run", "stop", "evict"), Crash: int64(rapid.IntRange(0, 1).Draw(t, "alloc crash")),
				Client: pick("client", "pending", "running", "complete", "failed", "lost", "unknown"),
			}
		}
		got, _ := assess(s, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3})
		switch {
		case got == remedySettle && (row.State != engine.Sleeping || row.Frozen == nil || s.unheard()):
			t.Fatal("settled")
		case row.Desired != engine.Running && got != remedyNone && got != remedySettle:
			t.Fatalf("%s for an engine that should not run", got)
		case (got == remedyRestart || got == remedyWait || got == remedyGiveUp) && (s.unheard() || s.alive()):
			t.Fatalf("%s while a process may run", got)
		case (got == remedyFail || got == remedyProbe) && row.State != engine.Running, (got == remedyRecover || got == remedyPeek || got == remedyRestart) && row.State != engine.Failed:
			t.Fatalf("%s of an engine that is %s", got, row.State)
		case got == remedyRecover && !s.alive():
			t.Fatal("a recovery without a process")
		}
	})
}

// TestLostVolume: an engine whose volume Nomad does not know is failed once, and then not
// touched until it has one.
func TestLostVolume(t *testing.T) {
	now := time.Now()
	spent := &engine.Restarts{NextAt: now.Add(-time.Minute), Attempts: 2}
	row := func(state engine.State, reason string) *engine.Row {
		return &engine.Row{State: state, Desired: engine.Running, AllocID: "a", Reason: reason, Restarts: spent}
	}
	alive := &cluster.Alloc{ID: "b", Desired: api.AllocDesiredStatusRun, Client: api.AllocClientStatusRunning}
	for _, c := range []struct {
		name        string
		observation observation
		want        remedy
		reason      string
	}{
		{"Running", observation{row: row(engine.Running, ""), lost: true}, remedyFail, engine.ReasonVolumeUnknown},
		{"RunningOnASilentNode", observation{row: row(engine.Running, ""), lost: true, node: nodeSilent}, remedyFail, engine.ReasonNodeDown},
		{"Failed", observation{row: row(engine.Failed, engine.ReasonVolumeUnknown), lost: true}, remedyNone, ""},
		{"FailedOtherwise", observation{row: row(engine.Failed, engine.ReasonCrashed), lost: true}, remedyNone, ""},
		{"Adopted", observation{row: row(engine.Failed, engine.ReasonAdopted)}, remedyRestart, ""},
		{"AdoptedAndThere", observation{row: row(engine.Failed, engine.ReasonAdopted), alloc: alive}, remedyRecover, ""},
		{"KnownAgain", observation{row: row(engine.Failed, engine.ReasonVolumeUnknown)}, remedyRestart, ""},
		{"Paused", observation{row: &engine.Row{State: engine.Sleeping, Desired: engine.Sleeping, Frozen: &engine.Frozen{AllocID: "a"}}, lost: true}, remedyNone, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.observation.now = now
			if got, reason := assess(c.observation, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3}); got != c.want || reason != c.reason {
				t.Errorf("got %s %q, want %s %q", got, reason, c.want, c.reason)
			}
		})
	}
}
