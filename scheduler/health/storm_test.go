package health

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

func TestFleetHealth(t *testing.T) {
	rows := []*engine.Row{
		{State: engine.Running, Desired: engine.Running},
		{State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonCrashed},
		{State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonNodeDown},
		{State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonCrashed, Restarts: &engine.Restarts{GaveUp: true}},
		{State: engine.Provisioning, Desired: engine.Running, Op: &engine.Operation{Action: audit.ActionAutoRestartStart}},
		{State: engine.Provisioning, Desired: engine.Running, Op: &engine.Operation{Action: audit.ActionProvision}},
		{State: engine.Stopped, Desired: engine.Stopped}, {State: engine.Sleeping, Desired: engine.Sleeping},
		{State: engine.Failed, Desired: engine.Stopped}, {State: engine.Destroying, Desired: engine.Destroying},
	}
	if failed, wanted := FleetHealth(rows); failed != 2 || wanted != 4 {
		t.Errorf("got %d of %d, want 2 of 4", failed, wanted)
	}
}

func TestIsStorm(t *testing.T) {
	for _, c := range []struct {
		failed, wanted int
		want           bool
	}{{0, 0, false}, {9, 9, false}, {10, 49, true}, {10, 50, false}, {11, 54, true}, {1000, 5000, false}, {1001, 5000, true}} {
		if got := IsStorm(c.failed, c.wanted); got != c.want {
			t.Errorf("%d of %d: %v", c.failed, c.wanted, got)
		}
	}
}

// Without a storm no restart is delayed. During a storm one engine is restarted every 10 s.
// After its cause is gone, all engines are soon back without manual action.
func TestStormEndsByItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const fleet = 1000
		broken := rapid.IntRange(201, fleet).Draw(t, "broken")
		lasts := rapid.IntRange(0, 600).Draw(t, "seconds")
		now := time.Unix(1e9, 0)
		healed := now.Add(time.Duration(lasts) * time.Second)
		s := &storm{}
		if on, changed := s.weigh(broken, fleet); !on || !changed {
			t.Fatal("it is not held")
		}
		failed, during, restarts := broken, 0, 0
		for rounds := 0; ; rounds++ {
			if on, _ := s.weigh(failed, fleet); !on {
				break
			}
			var canaries int
			for range failed {
				canary, ok := s.permit(now)
				if !ok {
					break
				}
				if !canary {
					t.Fatal("a restart in a storm that is no canary")
				}
				canaries++
			}
			restarts += canaries
			if now.Before(healed) {
				during += canaries
			}
			for range canaries {
				well := !now.Before(healed)
				if well {
					failed--
				}
				s.told(well)
			}
			now = now.Add(time.Second)
			if now.After(healed.Add(5 * time.Minute)) {
				t.Fatalf("still delayed 5 minutes after the cause was gone, with %d failed", failed)
			}
		}
		if most := lasts/10 + 1; during > most {
			t.Fatalf("%d restarts in a storm of %d s, want at most %d", during, lasts, most)
		}
		if canary, ok := s.permit(now); canary || !ok {
			t.Fatal("restarts are held after the storm")
		}
	})
}

// A failed canary resets the number of concurrent restarts to one.
func TestStormRelapses(t *testing.T) {
	s, now := &storm{}, time.Unix(1e9, 0)
	s.weigh(100, 100)
	round := func(want int, well bool) {
		t.Helper()
		got := 0
		for {
			if _, ok := s.permit(now); !ok {
				break
			}
			got++
		}
		if got != want {
			t.Fatalf("%d concurrent canaries, want %d", got, want)
		}
		for i := range got {
			s.told(well || i > 0)
		}
	}
	round(1, true)
	round(2, true)
	round(4, false)
	round(0, true) // not before 10 s have passed
	now = now.Add(canaryEvery)
	round(1, true)
	round(2, true)
}
