package main

import (
	"context"
	"sync"
	"time"

	"github.com/septemberai/orch/client"
)

const (
	// burstEngines are asked for at the same moment, burstWarm of them wait
	// already.
	burstEngines = 300
	burstWarm    = 30
)

// burstResult is what became of a burst.
type burstResult struct {
	latency []float64 // of each call that succeeded, in milliseconds
	failed  []error
	alive   int     // engines that answer at the end
	rss     float64 // of the service then, in MiB
	seconds float64 // until the last answer
}

// burst has all users of a product ask for an engine at once.
func (b *bench) burst(ctx context.Context) error {
	s, err := b.rig.start(ctx, b.rig.vars("burst", rawExec, burstEngines, map[string]string{"ORCH_ENGINE_LOGS": "driver"}))
	if err != nil {
		return err
	}
	keep := burstWarm
	c, err := s.product(ctx, "burst", &client.Policy{WarmPool: &keep})
	if err != nil {
		return err
	}
	if err := s.warmFull(ctx, burstWarm); err != nil {
		return err
	}
	if err := s.poolFull(ctx); err != nil {
		return err
	}
	var (
		res   burstResult
		mu    sync.Mutex
		wg    sync.WaitGroup
		users = usersOf("burst", burstEngines)
		began = time.Now()
	)
	for _, user := range users {
		wg.Go(func() {
			err := provisionOf(c, user)(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				res.failed = append(res.failed, err)
				return
			}
			res.latency = append(res.latency, millis(time.Since(began)))
		})
	}
	wg.Wait()
	res.seconds = time.Since(began).Seconds()
	if res.rss, err = s.rssMiB(); err != nil {
		return err
	}
	if res.alive, err = alive(ctx, c, users); err != nil {
		return err
	}
	if len(res.failed) == 0 {
		_, err = destroys(ctx, c, users)
	}
	b.rep.addBurst(res)
	return err
}
