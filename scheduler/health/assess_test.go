package health

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
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
	up := &registry.Engine{State: registry.Running, Desired: registry.Running, AllocID: "a"}
	failed := func(reason string, r *registry.Restarts) *registry.Engine {
		return &registry.Engine{State: registry.Failed, Desired: registry.Running, Reason: reason, Restarts: r}
	}
	later := &registry.Restarts{NextAt: now.Add(time.Second)}
	due := &registry.Restarts{NextAt: now, Attempts: 2}
	spent := &registry.Restarts{NextAt: now, Attempts: 3}
	gaveUp := &registry.Restarts{Attempts: 3, GaveUp: true}
	paused := &registry.Engine{State: registry.Sleeping, Desired: registry.Sleeping, Frozen: &registry.Frozen{AllocID: "a", Started: 5}}
	frozen, anew := alloc("running"), alloc("running")
	frozen.Started, anew.Started = 5, 6
	for _, c := range []struct {
		name   string
		row    *registry.Engine
		alloc  *cluster.Alloc
		node   nodeState
		fails  bool
		want   care
		reason string
	}{
		{"Well", up, running, nodeUp, false, careNone, ""},
		{"WellOnAClosedNode", up, running, nodeShut, false, careNone, ""},
		{"CheckFails", up, running, nodeUp, true, careProbe, engine.ReasonUnhealthy},
		{"Crashed", up, crashed, nodeUp, false, careFail, engine.ReasonCrashed},
		{"OutOfMemory", up, starved, nodeUp, false, careFail, engine.ReasonMemory},
		{"RestartedAfterOutOfMemory", failed(engine.ReasonMemory, later), running, nodeUp, false, careRecover, ""},
		{"Ended", up, complete, nodeUp, false, careFail, engine.ReasonCrashed},
		{"AnotherAllocation", up, other, nodeUp, false, careFail, engine.ReasonCrashed},
		{"JobGone", up, nil, nodeUp, false, careFail, engine.ReasonJobMissing},
		{"NodeDown", up, running, nodeSilent, false, careFail, engine.ReasonNodeDown},
		{"NodeDownAndFailing", up, running, nodeSilent, true, careFail, engine.ReasonNodeDown},
		{"Unknown", up, unknown, nodeUp, false, careFail, engine.ReasonNodeDown},
		{"Drained", up, complete, nodeShut, false, careFail, engine.ReasonNodeDown},
		{"BeingDrained", up, stopping, nodeShut, false, careFail, engine.ReasonNodeDown},
		{"RestartedInPlace", failed(engine.ReasonCrashed, later), running, nodeUp, false, careRecover, ""},
		{"NodeIsBack", failed(engine.ReasonNodeDown, later), running, nodeUp, false, careRecover, ""},
		{"NodeIsBackWithoutIt", failed(engine.ReasonNodeDown, later), complete, nodeUp, false, careRestart, ""},
		{"NodeStillDown", failed(engine.ReasonNodeDown, due), running, nodeSilent, false, careNone, ""},
		{"NodeStillDrains", failed(engine.ReasonNodeDown, due), complete, nodeShut, false, careNone, ""},
		{"UnhealthyButThere", failed(engine.ReasonUnhealthy, due), running, nodeUp, true, carePeek, ""},
		{"BootTimeoutButThere", failed(engine.ReasonBootTimeout, due), running, nodeUp, false, carePeek, ""},
		{"NotYet", failed(engine.ReasonCrashed, later), complete, nodeUp, false, careWait, ""},
		{"Due", failed(engine.ReasonCrashed, due), complete, nodeUp, false, careRestart, ""},
		{"DueWithoutAJob", failed(engine.ReasonJobMissing, due), nil, nodeUp, false, careRestart, ""},
		{"Spent", failed(engine.ReasonCrashed, spent), complete, nodeUp, false, careGiveUp, ""},
		{"GaveUp", failed(engine.ReasonCrashed, gaveUp), complete, nodeUp, false, careNone, ""},
		{"Stopped", &registry.Engine{State: registry.Stopped, Desired: registry.Stopped}, complete, nodeUp, false, careNone, ""},
		{"Asleep", &registry.Engine{State: registry.Sleeping, Desired: registry.Sleeping}, nil, nodeUp, false, careNone, ""},
		{"Paused", paused, frozen, nodeUp, true, careNone, ""},
		{"PausedOnAClosedNode", paused, frozen, nodeShut, true, careNone, ""},
		{"PausedAndTheNodeIsDown", paused, complete, nodeSilent, true, careNone, ""},
		{"PausedAndUnknown", paused, unknown, nodeUp, true, careNone, ""},
		{"PausedAndItsStartForgotten", paused, running, nodeUp, true, careNone, ""},
		{"PausedAndStartedAnew", paused, anew, nodeUp, false, careSettle, ""},
		{"PausedAndCrashed", paused, crashed, nodeUp, true, careSettle, ""},
		{"PausedAndEnded", paused, complete, nodeUp, true, careSettle, ""},
		{"PausedAndDrained", paused, stopping, nodeShut, true, careSettle, ""},
		{"PausedAndPlacedAnew", paused, other, nodeUp, false, careSettle, ""},
		{"PausedWithoutAJob", paused, nil, nodeUp, false, careSettle, ""},
		{"FailedThenStopped", &registry.Engine{State: registry.Failed, Desired: registry.Stopped}, complete, nodeUp, false, careNone, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, reason := assess(sight{row: c.row, alloc: c.alloc, node: c.node, fails: c.fails, now: now}, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3})
			if got != c.want || reason != c.reason {
				t.Errorf("got %s %q, want %s %q", got, reason, c.want, c.reason)
			}
			busy := c.row.Clone()
			busy.Op = &registry.Op{}
			if got, _ := assess(sight{row: busy, alloc: c.alloc, node: c.node, fails: c.fails, now: now}, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3}); got != careNone {
				t.Errorf("an engine with an operation under way gets %s", got)
			}
		})
	}
}

// Whatever there is: nothing gets a second process while its first may run, and
// what nobody can see is left alone.
func TestAssessIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pick := func(name string, words ...string) string { return rapid.SampledFrom(words).Draw(t, name) }
		now := time.Unix(1e9, 0)
		row := &registry.Engine{
			State: rapid.SampledFrom(registry.States).Draw(t, "state"), Desired: rapid.SampledFrom(registry.States).Draw(t, "desired"),
			Reason:  pick("reason", engine.ReasonCrashed, engine.ReasonNodeDown, engine.ReasonUnhealthy, engine.ReasonBootTimeout, engine.ReasonImage, engine.ReasonJobMissing),
			AllocID: "a", Crash: int64(rapid.IntRange(0, 1).Draw(t, "crash")),
		}
		if rapid.Bool().Draw(t, "frozen") {
			row.Frozen = &registry.Frozen{AllocID: "a", Started: 1}
		}
		if rapid.Bool().Draw(t, "restarts") {
			row.Restarts = &registry.Restarts{
				Attempts: rapid.IntRange(0, 4).Draw(t, "attempts"), GaveUp: rapid.Bool().Draw(t, "gave up"),
				NextAt: now.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "next"))),
			}
		}
		s := sight{row: row, now: now, node: nodeState(rapid.IntRange(0, 2).Draw(t, "node")), fails: rapid.Bool().Draw(t, "fails")}
		if rapid.Bool().Draw(t, "alloc") {
			s.alloc = &cluster.Alloc{
				ID: pick("id", "a", "b"), Desired: pick("alloc desired", "run", "stop", "evict"), Crash: int64(rapid.IntRange(0, 1).Draw(t, "alloc crash")),
				Client: pick("client", "pending", "running", "complete", "failed", "lost", "unknown"),
			}
		}
		got, _ := assess(s, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3})
		switch {
		case got == careSettle && (row.State != registry.Sleeping || row.Frozen == nil || s.unheard()):
			t.Fatal("settled")
		case row.Desired != registry.Running && got != careNone && got != careSettle:
			t.Fatalf("%s for an engine that should not run", got)
		case (got == careRestart || got == careWait || got == careGiveUp) && (s.unheard() || s.alive()):
			t.Fatalf("%s while a process may run", got)
		case (got == careFail || got == careProbe) && row.State != registry.Running, (got == careRecover || got == carePeek || got == careRestart) && row.State != registry.Failed:
			t.Fatalf("%s of an engine that is %s", got, row.State)
		case got == careRecover && !s.alive():
			t.Fatal("a recovery without a process")
		}
	})
}

// TestLostVolume: an engine whose volume Nomad does not know is failed once, and then
// left alone until it has one.
func TestLostVolume(t *testing.T) {
	now := time.Now()
	spent := &registry.Restarts{NextAt: now.Add(-time.Minute), Attempts: 2}
	row := func(state registry.State, reason string) *registry.Engine {
		return &registry.Engine{State: state, Desired: registry.Running, AllocID: "a", Reason: reason, Restarts: spent}
	}
	alive := &cluster.Alloc{ID: "b", Desired: api.AllocDesiredStatusRun, Client: api.AllocClientStatusRunning}
	for _, c := range []struct {
		name   string
		sight  sight
		want   care
		reason string
	}{
		{"Running", sight{row: row(registry.Running, ""), lost: true}, careFail, engine.ReasonVolumeUnknown},
		{"RunningOnASilentNode", sight{row: row(registry.Running, ""), lost: true, node: nodeSilent}, careFail, engine.ReasonNodeDown},
		{"Failed", sight{row: row(registry.Failed, engine.ReasonVolumeUnknown), lost: true}, careNone, ""},
		{"FailedOtherwise", sight{row: row(registry.Failed, engine.ReasonCrashed), lost: true}, careNone, ""},
		{"Adopted", sight{row: row(registry.Failed, engine.ReasonAdopted)}, careRestart, ""},
		{"AdoptedAndThere", sight{row: row(registry.Failed, engine.ReasonAdopted), alloc: alive}, careRecover, ""},
		{"KnownAgain", sight{row: row(registry.Failed, engine.ReasonVolumeUnknown)}, careRestart, ""},
		{"Paused", sight{row: &registry.Engine{State: registry.Sleeping, Desired: registry.Sleeping, Frozen: &registry.Frozen{AllocID: "a"}}, lost: true}, careNone, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.sight.now = now
			if got, reason := assess(c.sight, engine.Backoff{Max: 5 * time.Minute, MaxAttempts: 3}); got != c.want || reason != c.reason {
				t.Errorf("got %s %q, want %s %q", got, reason, c.want, c.reason)
			}
		})
	}
}
