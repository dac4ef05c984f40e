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
	wait := Doubled(b.Base, attempts+1, b.Max)
	return wait + rand.N(wait/10+1)
}

// Longest returns the longest wait that After can return.
func (b Backoff) Longest() time.Duration { return b.Max + b.Max/10 + 1 }

// Doubled returns the wait after this number of attempts, at least 1: first after the first
// one, twice as long after each further one, and at most last.
func Doubled(first time.Duration, attempts int, last time.Duration) time.Duration {
	for range attempts - 1 {
		if first > last/2 {
			return last
		}
		first *= 2
	}
	return min(first, last)
}
