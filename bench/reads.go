package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// readRate is how many reads are sent per second, whether or not the ones
	// before are answered.
	readRate = 500
	readTime = 10 * time.Second
)

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

// read sends reads at readRate for readTime and waits for their answers.
func read(ctx context.Context, one func(ctx context.Context, n int) error) (readResult, error) {
	const total = readRate * int(readTime/time.Second)
	var (
		res = readResult{latency: make([]float64, total), late: make([]float64, total)}
		mu  sync.Mutex
		wg  sync.WaitGroup
	)
	began := time.Now()
	for n := range total {
		due := began.Add(time.Duration(n) * time.Second / readRate)
		select {
		case <-ctx.Done():
			wg.Wait()
			return res, ctx.Err()
		case <-time.After(time.Until(due)):
		}
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
