package health

import (
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
)

func TestAttemptsAreCountedUntilAnEngineRunsWell(t *testing.T) {
	b, now := engine.Backoff{Base: time.Second, Max: time.Minute}, time.Now()
	row := &engine.Row{RunningSince: now.Add(-59 * time.Second), Restarts: &engine.Restarts{Attempts: 3}}
	if got := nextRestarts(b, row, now); got.Attempts != 3 || got.NextAt.Before(now.Add(8*time.Second)) {
		t.Errorf("failed again soon: %+v", got)
	}
	row.RunningSince = now.Add(-61 * time.Second)
	if got := nextRestarts(b, row, now); got.Attempts != 0 || got.NextAt.After(now.Add(2*time.Second)) {
		t.Errorf("failed after it ran well: %+v", got)
	}
}

// A failed engine whose next restart was scheduled by a clock that was an hour ahead is
// restarted before that hour is over.
func TestRestartAfterAClockAhead(t *testing.T) {
	now, b := time.Unix(1_000_000, 0), engine.Backoff{Base: 5 * time.Second, Max: 5 * time.Minute, MaxAttempts: 8}
	for ahead, want := range map[time.Duration]remedy{
		0: remedyWait, time.Hour: remedyRestart, -time.Hour: remedyRestart,
	} {
		for attempts := range 8 {
			row := &engine.Row{State: engine.Failed, Restarts: &engine.Restarts{Attempts: attempts, NextAt: now.Add(ahead + b.After(attempts))}}
			if got := due(row, now, b); got != want {
				t.Errorf("attempt %d by a clock %s ahead: %v, want %v", attempts, ahead, got, want)
			}
		}
	}
}
