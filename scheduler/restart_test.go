package scheduler

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/registry"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Base: 5 * time.Second, Max: 300 * time.Second, MaxAttempts: 8}
	for attempts, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		want *= time.Second
		if got := b.after(attempts); got < want || got > want+want/10 {
			t.Errorf("after %d attempts: %s, want %s and up to a tenth more", attempts, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{Base: time.Duration(rapid.Int64Range(1, 1000).Draw(t, "base")) * time.Second}
		b.Max = b.Base + time.Duration(rapid.Int64Range(0, 100000).Draw(t, "more"))*time.Second
		if got := b.after(rapid.IntRange(0, 1000).Draw(t, "attempts")); got < b.Base || got > b.Max+b.Max/10 {
			t.Fatalf("%s is not from %s to %s and a tenth", got, b.Base, b.Max)
		}
	})
}

func TestAttemptsAreCountedUntilAnEngineRunsWell(t *testing.T) {
	b, now := Backoff{Base: time.Second, Max: time.Minute}, time.Now()
	row := &registry.Engine{RunningSince: now.Add(-59 * time.Second), Restarts: &registry.Restarts{Attempts: 3}}
	if got := b.next(row, now); got.Attempts != 3 || got.NextAt.Before(now.Add(8*time.Second)) {
		t.Errorf("failed again soon: %+v", got)
	}
	row.RunningSince = now.Add(-61 * time.Second)
	if got := b.next(row, now); got.Attempts != 0 || got.NextAt.After(now.Add(2*time.Second)) {
		t.Errorf("failed after it ran well: %+v", got)
	}
}

func TestSettle(t *testing.T) {
	b, now := Backoff{Base: time.Second, Max: time.Minute}, time.Now()
	for _, c := range []struct {
		name     string
		state    registry.State
		op       registry.Op
		attempts int
	}{
		{"Failed", registry.Failed, registry.Op{Undo: string(BootTimeout)}, 2},
		{"CanaryFailed", registry.Failed, registry.Op{Undo: string(BootTimeout), Canary: true}, 1},
		{"NoRoom", registry.Failed, registry.Op{Undo: string(CapacityExhausted)}, 1},
		{"VaultDown", registry.Failed, registry.Op{Undo: string(BackendUnavailable)}, 1},
		{"Running", registry.Running, registry.Op{}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.op.Kind, c.op.Action = registry.OpStart, audit.ActionAutoRestartStart
			row := &registry.Engine{State: c.state, Desired: registry.Running, Restarts: &registry.Restarts{Attempts: 2}}
			b.settle(row, &c.op, now)
			if row.Restarts == nil || row.Restarts.Attempts != c.attempts || row.RunningSince.IsZero() == (c.state == registry.Running) {
				t.Errorf("got %+v, running since %s", row.Restarts, row.RunningSince)
			}
		})
	}
	row := &registry.Engine{State: registry.Stopped, Desired: registry.Stopped, Restarts: &registry.Restarts{Attempts: 2}}
	if b.settle(row, &registry.Op{Kind: registry.OpStart}, now); row.Restarts != nil {
		t.Error("an engine that was put back to stopped is to be restarted")
	}
}
