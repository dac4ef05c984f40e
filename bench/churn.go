//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/septemberai/orch/client"
)

const (
	// loadEngines are provisioned one after another by loadCallers concurrently.
	loadEngines, loadCallers = 150, 32
	// loadWarm engines are claimed by the same; each has about 30 MiB of Nomad's
	// helper processes.
	loadWarm = 100
	// burstEngines are asked for at the same moment, burstWarm of them wait already.
	burstEngines, burstWarm = 300, 30
)

// churn measures how many engines come and go per second.
func (b *bench) churn(ctx context.Context) {
	vars := b.vars("load", rawExec, loadEngines, nil)
	s, f := b.start(ctx, vars), b.newFloor(ctx, vars, loadEngines)
	cold, claimed := usersOf("cold", loadEngines), usersOf("warm", loadWarm)
	s.waiting(ctx, loadEngines, 0)
	floor := b.churnByHand(ctx, s, f)
	b.rate(ctx, s, "provisions, volume ready, raw_exec", 20, floor, s.provisions(cold))
	b.running(ctx, s, loadEngines)
	b.memory(s, fmt.Sprintf("%d engines", loadEngines), 120)
	b.rate(ctx, s, "destroys, raw_exec", 0, 0, s.targets(http.MethodDelete, "", cold))
	keep, memory := loadWarm, warmMemoryMB
	warm := s.product(ctx, "warm", &client.Policy{WarmPool: &keep, MemoryMB: &memory})
	s.waiting(ctx, loadEngines, loadWarm)
	b.rate(ctx, s, "provisions, warm, raw_exec", 200, 0, warm.provisions(claimed))
	b.running(ctx, warm, loadWarm)
	each(ctx, claimed, loadCallers, warm.destroy)
}

// rate measures how many calls succeed per second, each target called once. least is
// the target, and floor the rate by hand; 0: none.
func (b *bench) rate(ctx context.Context, s *service, what string, least, floor float64, targets []vegeta.Target) {
	l := load{callers: loadCallers, calls: len(targets)}
	a := b.attack(ctx, s, what, l, targets)
	f := figure{name: fmt.Sprintf("%s, %d by %d callers", what, l.calls, l.callers), unit: "1/s", orch: once(a.perSecond)}
	if floor > 0 {
		f = f.beside(hand, once(floor))
	}
	b.add(f.least(a.perSecond, least, "≥ %g/s"))
}

// churnByHand runs all of a floor's engines, as many concurrently as by the service,
// ends them, and returns how many it ran per second.
func (b *bench) churnByHand(ctx context.Context, s *service, f *floor) float64 {
	var all []*handJob
	for range loadEngines {
		all = append(all, <-f.ready)
	}
	began := time.Now()
	b.metered(s, "provisions by hand, raw_exec", func() int {
		each(ctx, all, loadCallers, func(ctx context.Context, h *handJob) { f.run(ctx, startWatch(), h) })
		return len(all)
	})
	perSecond := float64(len(all)) / time.Since(began).Seconds()
	each(ctx, all, loadCallers, func(ctx context.Context, h *handJob) { f.destroy(ctx, startWatch(), h) })
	return perSecond
}

// running adds how many engines of the product run and pass their check: all should.
func (b *bench) running(ctx context.Context, s *service, all int) {
	status := must(s.Status(ctx))
	n := float64(status.ByStatus[client.Running] - status.UnhealthyCount)
	b.add(figure{name: "— of them run at the end", unit: "engines", orch: once(n)}.least(n, float64(all), "≥ %g"))
}

// burst has all users of a product ask for an engine at once. What engines print is
// kept by nobody: Nomad's log helper of each wakes 20 times per second, which for 300
// is a large part of a core.
func (b *bench) burst(ctx context.Context) {
	s := b.start(ctx, b.vars("burst", rawExec, burstEngines, map[string]string{"ORCH_ENGINE_LOGS": "driver"}))
	keep, users := burstWarm, usersOf("burst", burstEngines)
	c := s.product(ctx, "burst", &client.Policy{WarmPool: &keep})
	s.waiting(ctx, burstEngines, burstWarm)
	name := fmt.Sprintf("%d provisions at once, %d of them warm", burstEngines, burstWarm)
	a := b.attack(ctx, s, name, load{callers: burstEngines, calls: burstEngines}, c.provisions(users))
	b.add(figure{name: name, unit: "ms", orch: a.latency})
	b.single("— until the last answer", "s", a.seconds)
	n := float64(burstEngines - a.failed)
	b.add(figure{name: "— that succeeded", unit: "engines", orch: once(n)}.least(n, burstEngines, "≥ %g"))
	b.running(ctx, c, burstEngines)
	b.memory(s, fmt.Sprintf("%d engines", burstEngines), 120)
	if a.failed == 0 {
		each(ctx, users, loadCallers, c.destroy)
	}
}
