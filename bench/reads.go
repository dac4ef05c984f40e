package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// openLoad is calls at a rate, whether or not the ones before are answered.
type openLoad struct {
	perSecond int
	lasts     time.Duration
}

func (l openLoad) String() string { return fmt.Sprintf("%d/s open loop for %s", l.perSecond, l.lasts) }

// readResult is what an open loop of reads measured, in milliseconds.
type readResult struct {
	// latency runs from the moment a read was due, so that a service that
	// stalls is charged for all that had to wait.
	latency []float64
	// late is how long after that moment this process got to send it: its own
	// part of latency.
	late   []float64
	failed []error
}

// read makes the calls and waits for their answers.
func (l openLoad) read(ctx context.Context, one func(ctx context.Context, n int) error) (readResult, error) {
	total := int(float64(l.perSecond) * l.lasts.Seconds())
	var (
		res = readResult{latency: make([]float64, total), late: make([]float64, total)}
		mu  sync.Mutex
		wg  sync.WaitGroup
	)
	began := time.Now()
	for n := 0; n < total && ctx.Err() == nil; n++ {
		due := began.Add(time.Duration(n) * time.Second / time.Duration(l.perSecond))
		sleepUntil(due)
		wg.Go(func() {
			res.late[n] = millis(time.Since(due))
			err := one(ctx, n)
			res.latency[n] = millis(time.Since(due))
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				res.failed = append(res.failed, fmt.Errorf("read %d: %w", n, err))
			}
		})
	}
	wg.Wait()
	return res, ctx.Err()
}
