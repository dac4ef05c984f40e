package scheduler

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestQuietPeriod: the follow-up work of a claim waits until claims pause, but at most for
// warmEvery.
func TestQuietPeriod(t *testing.T) {
	for name, c := range map[string]struct {
		claims int // one every 100 ms
		want   time.Duration
	}{
		"one claim":                {1, warmQuiet},
		"a few claims":             {5, 400*time.Millisecond + warmQuiet},
		"claims that do not pause": {100, warmEvery},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &warmPool{}
				began := time.Now()
				p.claimed.Store(began.UnixNano())
				var claiming sync.WaitGroup
				defer claiming.Wait()
				claiming.Go(func() {
					for range c.claims - 1 {
						time.Sleep(100 * time.Millisecond)
						p.claimed.Store(time.Now().UnixNano())
					}
				})
				p.awaitQuiet(t.Context())
				if took := time.Since(began); took != c.want {
					t.Errorf("it took %s, want %s", took, c.want)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &warmPool{}
	p.claimed.Store(time.Now().UnixNano())
	p.awaitQuiet(ctx) // returns
}
