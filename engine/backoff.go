package engine

import (
	"math/rand/v2"
	"time"
)

// Backoff determines how long a failed engine waits for its restart.
type Backoff struct {
	Base, Max   time.Duration // the first wait, which doubles each time, and the maximum
	MaxAttempts int           // restarts before the service gives up
}

// After returns the wait after this number of attempts, plus a random tenth at most, so
// that engines that failed together are not restarted together.
func (b Backoff) After(attempts int) time.Duration {
	wait := b.Base
	for range attempts {
		if wait *= 2; wait >= b.Max {
			break
		}
	}
	wait = min(wait, b.Max)
	return wait + rand.N(wait/10+1)
}

// Longest returns the longest wait that After can return.
func (b Backoff) Longest() time.Duration { return b.Max + b.Max/10 + 1 }
