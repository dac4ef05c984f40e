package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// mostPercent is how much garbage may gather until it is collected, of what is in
	// use. With few engines that is little, so Go's default of 100 collects many times
	// a second when admits come fast.
	mostPercent = 200
	// mostGarbage bounds it with many engines, in bytes: the service is to hold 10,000
	// within 120 MiB.
	mostGarbage = 32 << 20
	// leastPercent keeps collections from taking over with very many.
	leastPercent = 50
	// collectEvery is how often that is looked at anew.
	collectEvery = 5 * time.Second
)

// gcPercent is when to collect, with so many bytes in use.
func gcPercent(live uint64) int {
	return int(min(mostPercent, max(leastPercent, mostGarbage*100/max(live, 1))))
}

// collectLess keeps Go's percentage at gcPercent until ctx ends, unless GOGC says
// what it is to be. The function that it returns waits for its end.
func collectLess(ctx context.Context, gogc string) (wait func()) {
	if gogc != "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	debug.SetGCPercent(mostPercent)
	go func() {
		defer close(ended)
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		tick := time.NewTicker(collectEvery)
		defer tick.Stop()
		for percent := mostPercent; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			metrics.Read(live)
			if now := gcPercent(live[0].Value.Uint64()); now != percent {
				debug.SetGCPercent(now)
				percent = now
			}
		}
	}()
	return func() { cancel(); <-ended }
}
