package scheduler

import (
	"testing"
	"time"

	"github.com/septemberai/orch/registry"
)

// A failed engine whose next restart was noted by a clock that was an hour ahead is not
// left alone for that hour.
func TestRestartAfterAClockAhead(t *testing.T) {
	now, b := time.Unix(1_000_000, 0), Backoff{Base: 5 * time.Second, Max: 5 * time.Minute, MaxAttempts: 8}
	for ahead, want := range map[time.Duration]care{
		0: careWait, time.Hour: careRestart, -time.Hour: careRestart,
	} {
		for attempts := range 8 {
			row := &registry.Engine{State: registry.Failed, Restarts: &registry.Restarts{Attempts: attempts, NextAt: now.Add(ahead + b.after(attempts))}}
			if got := due(row, now, b); got != want {
				t.Errorf("attempt %d by a clock %s ahead: %v, want %v", attempts, ahead, got, want)
			}
		}
	}
}

func TestWithin(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, c := range []struct{ off, want time.Duration }{
		{time.Hour, time.Minute}, {time.Minute, time.Minute}, {time.Second, time.Second}, {-time.Hour, -time.Hour},
	} {
		if got := within(now.Add(c.off), now, time.Minute).Sub(now); got != c.want {
			t.Errorf("a deadline in %s is brought to %s, want %s", c.off, got, c.want)
		}
	}
}
