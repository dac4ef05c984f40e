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
	alive   int // engines that answer at the end
	seconds float64
}

func (t throughput) perSecond() float64 { return float64(t.done) / t.seconds }

// loadResult is what was measured one after the other.
type loadResult struct {
	cold, destroys, warm throughput
	rss                  float64 // of the service with all of the engines, in MiB
}

// load measures how many engines come and go per second.
func (b *bench) load(ctx context.Context) error {
	s, err := b.rig.start(ctx, b.rig.vars("load", rawExec, loadEngines, nil))
	if err != nil {
		return err
	}
	keep, memory := loadWarm, warmMemoryMB
	var res loadResult
	var warm *client.Client
	err = inOrder([]func() error{
		func() error { return s.poolFull(ctx) },
		func() (err error) {
			res.cold, err = provisions(ctx, s.Client, usersOf("cold", loadEngines))
			return err
		},
		func() (err error) { res.rss, err = s.rssMiB(); return err },
		func() (err error) {
			res.destroys, err = destroys(ctx, s.Client, usersOf("cold", loadEngines))
			return err
		},
		func() error { return s.poolFull(ctx) },
		func() (err error) {
			warm, err = s.product(ctx, "warm", &client.Policy{WarmPool: &keep, MemoryMB: &memory})
			return err
		},
		func() error { return s.warmFull(ctx, loadWarm) },
		func() (err error) { res.warm, err = provisions(ctx, warm, usersOf("warm", loadWarm)); return err },
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

// provisions makes an engine for each user, and looks which of them answer when
// the last one was made.
func provisions(ctx context.Context, c *client.Client, users []string) (t throughput, err error) {
	began := time.Now()
	if err := each(ctx, users, loadCallers, func(ctx context.Context, user string) error { return provisionOf(c, user)(ctx) }); err != nil {
		return t, err
	}
	t.done, t.seconds = len(users), time.Since(began).Seconds()
	t.alive, err = alive(ctx, c, users)
	return t, err
}

func destroys(ctx context.Context, c *client.Client, users []string) (t throughput, err error) {
	began := time.Now()
	err = each(ctx, users, loadCallers, func(ctx context.Context, user string) error { return destroyOf(c, user)(ctx) })
	t.done, t.seconds = len(users), time.Since(began).Seconds()
	return t, err
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
