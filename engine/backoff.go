package engine

import (
	"math/rand/v2"
	"time"
)

// Backoff is how long a failed engine waits to be restarted (SPEC section 8).
type Backoff struct {
	Base, Max   time.Duration // the first wait, which doubles, and the longest
	MaxAttempts int           // restarts before the service gives up
}

// After is the wait after so many attempts, up to a tenth longer by chance, so
// that what failed together is not restarted together.
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

// Longest is the longest wait that After gives.
func (b Backoff) Longest() time.Duration { return b.Max + b.Max/10 + 1 }
