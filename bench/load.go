package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/client"
)

const (
	// loadEngines are provisioned one after the other by loadCallers at a time.
	loadEngines = 150
	loadCallers = 32
	// loadWarm engines are claimed by the same; each has about 30 MiB of Nomad's
	// helper processes.
	loadWarm = 100
)

// throughput is how many of something were done, and how fast.
type throughput struct {
	done    int
	alive   int // engines that answer at the end, where that was asked
	seconds float64
}

func (t throughput) perSecond() float64 { return float64(t.done) / t.seconds }

// loadResult is what was measured one after the other.
type loadResult struct {
	cold, destroys, warm throughput
	byHand               throughput // what cold is compared with
	rss                  float64    // of the service with all of the engines, in MiB
}

// load measures how many engines come and go per second.
func (b *bench) load(ctx context.Context) error {
	vars := b.rig.vars("load", rawExec, loadEngines, nil)
	s, err := b.rig.start(ctx, vars)
	if err != nil {
		return err
	}
	keep, memory := loadWarm, warmMemoryMB
	var res loadResult
	var warm *client.Client
	err = inOrder([]func() error{
		func() error { return s.poolFull(ctx) },
		func() error { return b.loadByHand(ctx, s, vars, &res.byHand) },
		func() error {
			return b.metered(s, "provision, volume ready, raw_exec", func() (n int, err error) {
				res.cold, err = provisions(ctx, s.Client, usersOf("cold", loadEngines))
				return res.cold.done, err
			})
		},
		func() (err error) {
			res.cold.alive, err = alive(ctx, s.Client, usersOf("cold", loadEngines))
			return err
		},
		func() (err error) { res.rss, err = s.rssMiB(); return err },
		func() error {
			return b.metered(s, "destroy, raw_exec", func() (n int, err error) {
				res.destroys, err = destroys(ctx, s.Client, usersOf("cold", loadEngines))
				return res.destroys.done, err
			})
		},
		func() error { return s.poolFull(ctx) },
		func() (err error) {
			warm, err = s.product(ctx, "warm", &client.Policy{WarmPool: &keep, MemoryMB: &memory})
			return err
		},
		func() error { return s.warmFull(ctx, loadWarm) },
		func() error {
			return b.metered(s, "provision, warm, raw_exec", func() (n int, err error) {
				res.warm, err = provisions(ctx, warm, usersOf("warm", loadWarm))
				return res.warm.done, err
			})
		},
		func() (err error) { res.warm.alive, err = alive(ctx, warm, usersOf("warm", loadWarm)); return err },
		func() error { _, err := destroys(ctx, warm, usersOf("warm", loadWarm)); return err },
	})
	if err == nil {
		b.rep.addLoad(res)
	}
	return err
}

func usersOf(name string, n int) (users []string) {
	for i := range n {
		users = append(users, fmt.Sprintf("%s-%d", name, i))
	}
	return users
}

// loadByHand runs as many engines by hand, as many at a time, and ends them.
func (b *bench) loadByHand(ctx context.Context, s *service, vars map[string]string, into *throughput) error {
	f, err := newFloor(ctx, b.rig.stack.NomadAddr, vars, loadEngines)
	if err != nil {
		return err
	}
	all := f.ready
	err = b.metered(s, "provision by hand, raw_exec", func() (n int, err error) {
		*into, err = timedAll(ctx, all, func(ctx context.Context, h *handJob) error { _, err := f.run(ctx, h); return err })
		return into.done, err
	})
	if err != nil {
		return err
	}
	_, err = timedAll(ctx, all, func(ctx context.Context, h *handJob) error { _, err := f.destroy(ctx, h); return err })
	return err
}

// timedAll does something with each, loadCallers at a time.
func timedAll[T any](ctx context.Context, all []T, one func(context.Context, T) error) (t throughput, err error) {
	began := time.Now()
	err = each(ctx, all, loadCallers, one)
	t.done, t.seconds = len(all), time.Since(began).Seconds()
	return t, err
}

// provisions makes an engine for each user.
func provisions(ctx context.Context, c *client.Client, users []string) (throughput, error) {
	return timedAll(ctx, users, func(ctx context.Context, user string) error { return provisionOf(c, user)(ctx) })
}

func destroys(ctx context.Context, c *client.Client, users []string) (throughput, error) {
	return timedAll(ctx, users, func(ctx context.Context, user string) error { return destroyOf(c, user)(ctx) })
}

// alive counts the users whose engine answers /health with 200.
func alive(ctx context.Context, c *client.Client, users []string) (int, error) {
	var n atomic.Int64
	asks := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	err := each(ctx, users, loadCallers, func(ctx context.Context, user string) error {
		e, err := c.Engine(ctx, user)
		var refused *client.Error
		if errors.As(err, &refused) && refused.Code == "ENGINE_NOT_FOUND" {
			return nil
		}
		if err != nil || e.URL == "" {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := asks.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				n.Add(1)
			}
		}
		return nil
	})
	return int(n.Load()), err
}
