package scheduler

import (
	"testing"
	"time"

	"github.com/septemberai/orch/brain"
)

// TestStartedWhileFrozen: only a process that was started in the time of the freeze is another
// one than that which was frozen, however long the copy took.
func TestStartedWhileFrozen(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	for name, tc := range map[string]struct {
		started, began, ended, frozen float64 // s
		want                          bool
	}{
		"Before":         {-5, 0, 0.1, 0.2, false},
		"InTheFreeze":    {-0.05, 0, 0.1, 0.2, true},
		"InTheCopy":      {0.05, 0, 0.1, 0.2, true},
		"After":          {0.2, 0, 0.1, 0.2, false},
		"BeforeALongOne": {-5, 0, 9, 9.1, false}, // the engine is young, and its brain is large
		"InALongOne":     {5, 0, 9, 9.1, true},
		"Unknown":        {5, 0, 9, 0, true}, // another owner has frozen it
		"UnknownBefore":  {-0.1, 0, 9, 0, false},
	} {
		r := &brain.Result{CopyBegan: at(tc.began), CopyEnded: at(tc.ended)}
		if got := startedWhileFrozen(at(tc.started), r, time.Duration(tc.frozen*float64(time.Second))); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
