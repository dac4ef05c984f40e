//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/septemberai/orch/engine"
)

// load is HTTP calls at a rate, whether or not earlier ones are answered, or by
// callers of which each calls again as soon as it has its answer.
type load struct {
	perSecond int           // 0: by callers
	callers   int           // 0: as many as the rate takes
	lasts     time.Duration // 0: until calls have been made
	calls     int           // 0: as many as the time and the rate make
	must      string        // what the body of each answer must contain
}

func (l load) String() string {
	if l.perSecond == 0 {
		return fmt.Sprintf("%d callers without a pause", l.callers)
	}
	return fmt.Sprintf("%d/s open loop for %s", l.perSecond, l.lasts)
}

// answers are what a load measured, in milliseconds.
type answers struct {
	// latency of a load at a rate runs from the moment a call was due, so that a
	// service that stalls is charged for all that had to wait. late is how long after
	// that moment this process sent the call: its own part of latency.
	latency, late summary
	perSecond     float64 // that succeeded
	seconds       float64
	failed        int
	first         error // of those that failed
}

// run calls the targets in turn over a transport, and waits for all answers.
func (l load) run(ctx context.Context, transport http.RoundTripper, targets []vegeta.Target) (a answers, err error) {
	options := []func(*vegeta.Attacker){vegeta.Client(&http.Client{Transport: transport, Timeout: patience})}
	if l.callers > 0 {
		options = append(options, vegeta.Workers(uint64(l.callers)), vegeta.MaxWorkers(uint64(l.callers)))
	}
	if l.perSecond > 0 && l.calls == 0 { // also when the rate is not kept
		l.calls, l.lasts = int(float64(l.perSecond)*l.lasts.Seconds()), 0
	}
	attacker := vegeta.NewAttacker(options...)
	defer context.AfterFunc(ctx, func() { attacker.Stop() })()
	var took, lateness []float64
	began := time.Now()
	for res := range attacker.Attack(vegeta.NewStaticTargeter(targets...), pacer{vegeta.ConstantPacer{Freq: l.perSecond, Per: time.Second}, l.calls}, l.lasts, "") {
		late := time.Duration(0)
		if l.perSecond > 0 { // the first call is due after one interval
			due := began.Add(time.Duration(res.Seq+1) * time.Second / time.Duration(l.perSecond))
			late = max(0, res.Timestamp.Sub(due))
		}
		lateness, took = append(lateness, millis(late)), append(took, millis(late+res.Latency))
		if res.Error != "" || !strings.Contains(string(res.Body), l.must) {
			a.failed++
			a.first = cmp.Or(a.first, fmt.Errorf("%s: %s: %s", res.URL, res.Error, res.Body))
		}
	}
	a.latency, a.late, a.seconds = summarize(took), summarize(lateness), time.Since(began).Seconds()
	a.perSecond = float64(len(took)-a.failed) / a.seconds
	return a, ctx.Err()
}

// pacer waits by the kernel's clock, since Go's timers are up to a millisecond late in
// a process that has nothing else to do, and ends after so many calls, if not 0.
type pacer struct {
	vegeta.ConstantPacer
	calls int
}

// Pace implements vegeta.Pacer.
func (p pacer) Pace(elapsed time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if wait, stop = p.ConstantPacer.Pace(elapsed, hits); wait > 0 {
		ts := syscall.NsecToTimespec(int64(wait))
		_ = syscall.Nanosleep(&ts, nil) // a signal makes one call early
	}
	return 0, stop || p.calls > 0 && hits >= uint64(p.calls)
}

// attack runs a load and reports whose CPU time it takes, and what failed.
func (b *bench) attack(ctx context.Context, s *service, name string, l load, targets []vegeta.Target) (a answers) {
	b.metered(s, name, func() int {
		a = must(l.run(ctx, s.HTTP.Transport, targets))
		return a.latency.n
	})
	if a.failed > 0 {
		b.note("%s: %d of %d calls failed, the first with: %v.", name, a.failed, a.latency.n, a.first)
	}
	return a
}

// target is a call of the service as its product.
func (s *service) target(method, path string) vegeta.Target {
	return vegeta.Target{Method: method, URL: s.BaseURL + path, Header: http.Header{"X-Platform-Key": {s.PlatformKey}}}
}

// targets are a call for each user, whose path begins with the user's engine's.
func (s *service) targets(method, end string, users []string) (all []vegeta.Target) {
	for _, user := range users {
		all = append(all, s.target(method, "/engines/"+user+end))
	}
	return all
}

// provisions make the users' engines.
func (s *service) provisions(users []string) (all []vegeta.Target) {
	for _, user := range users {
		t := s.target(http.MethodPost, "/engines/provision")
		t.Body = fmt.Appendf(nil, `{"user_id": %q}`, user)
		t.Header.Set("Content-Type", "application/json")
		all = append(all, t)
	}
	return all
}

// fleetSize is how many engines run while reads and memory are measured.
const fleetSize = 20

// The loads of reads; admitted is in the answer to an admit that lets the user in.
var (
	usual    = load{perSecond: 500, lasts: 10 * time.Second}
	heavy    = load{perSecond: 5000, lasts: 5 * time.Second, must: admitted}
	closed   = load{callers: 32, lasts: 5 * time.Second}
	oneByOne = load{callers: 1, calls: 200}
)

const admitted = `"admitted":true`

// fleet runs many engines, reads them, and removes them.
func (b *bench) fleet(ctx context.Context) {
	s, users := b.start(ctx, b.vars("fleet", rawExec, fleetSize, nil)), usersOf("fleet", fleetSize)
	s.waiting(ctx, fleetSize, 0)
	each(ctx, users, fewAtOnce, s.provision)
	s.waiting(ctx, fleetSize, 0)
	quota := vegeta.Target{Method: http.MethodGet, URL: b.stack.ConsulAddr + "/v1/kv/" + s.name + "/quota/" + s.productID}
	floor := must(usual.run(ctx, s.HTTP.Transport, []vegeta.Target{quota})).latency
	b.atRate(ctx, s, "GET /engines/{user_id}", usual, 5, floor, s.targets(http.MethodGet, "", users))
	direct := b.attack(ctx, s, "three direct calls: each", closed, b.directCalls(ctx, s, users))
	check(direct.first)
	b.reads(ctx, s, "", users, usual.lasts, floor, direct.perSecond/3)
	b.atRate(ctx, s, "admit of a running engine", heavy, 2, summary{}, s.targets(http.MethodPost, "/admit", users))
	b.memory(s, fmt.Sprintf("%d engines, after the reads", fleetSize), 60)
	each(ctx, users, fewAtOnce, s.destroy)
	b.memory(s, "at the end", 60)
}

// directCalls are what a product would ask to admit a user without the service, three
// calls for each: the allocation from Nomad, the health from Consul, the key from Vault.
func (b *bench) directCalls(ctx context.Context, s *service, users []string) (targets []vegeta.Target) {
	token := http.Header{"X-Vault-Token": {b.stack.VaultRootToken}}
	for _, user := range users {
		id := must(s.Engine(ctx, user)).EngineID
		targets = append(targets,
			vegeta.Target{Method: http.MethodGet, URL: b.stack.NomadAddr + "/v1/job/" + engine.JobID(id) + "/allocations"},
			vegeta.Target{Method: http.MethodGet, URL: b.stack.ConsulAddr + "/v1/health/service/" + engine.JobID(id) + "?passing=1"},
			vegeta.Target{Method: http.MethodGet, URL: b.stack.VaultAddr + "/v1/" + s.name + "/data/engines/" + id, Header: token})
	}
	return targets
}

// reads measures admits and lists of users' engines: at the usual rate for so long
// beside one read of Consul, and without a pause beside how often per second the three
// direct calls were made; 0: not measured. where ends the names of the figures. It
// returns the 99th percentile of an admit at the usual rate.
func (b *bench) reads(ctx context.Context, s *service, where string, users []string, lasts time.Duration, floor summary, direct float64) (p99 float64) {
	admits := s.targets(http.MethodPost, "/admit", users)
	p99 = b.atRate(ctx, s, "admit of a running engine"+where, load{perSecond: usual.perSecond, lasts: lasts, must: admitted}, 5, floor, admits)
	busy := load{callers: closed.callers, lasts: closed.lasts, must: admitted}
	name := fmt.Sprint("admits", where, ", ", busy)
	a := b.attack(ctx, s, name, busy, admits)
	check(a.first)
	f := figure{name: name, unit: "1/s", orch: once(a.perSecond)}
	b.add(f.least(a.perSecond, 5000, "≥ %g/s"))
	if direct > 0 {
		f = f.beside("three direct calls", once(direct))
		b.add(f.least(f.ratio, 20, "≥ %g ×"))
	}
	b.add(figure{name: "— of each admit", unit: "ms", orch: a.latency})
	var pages []vegeta.Target
	for i := range oneByOne.calls { // far apart from one another: 7919 is a prime
		pages = append(pages, s.target(http.MethodGet, fmt.Sprintf("/engines?limit=100&offset=%d", i*7919%max(1, len(users)-100))))
	}
	b.list(ctx, s, "GET /engines, 100 from anywhere"+where, pages...)
	late := fmt.Sprintf("/engines?limit=100&status=running&offset=%d", len(users)*4/5)
	b.list(ctx, s, "GET /engines, 100 of a status, after 4/5 of them"+where, s.target(http.MethodGet, late))
	b.list(ctx, s, "GET /status"+where, s.target(http.MethodGet, "/status"))
	return p99
}

// list measures calls one by one.
func (b *bench) list(ctx context.Context, s *service, name string, targets ...vegeta.Target) {
	a := b.attack(ctx, s, name, oneByOne, targets)
	check(a.first)
	b.add(figure{name: name, unit: "ms", orch: a.latency}.most(a.latency.p99, 50, "p99 ≤ %g ms"))
}

// atRate measures a load at a rate, and returns its 99th percentile in milliseconds,
// which may be at most so much. floor is what one read of Consul takes at the same
// rate, if known.
func (b *bench) atRate(ctx context.Context, s *service, name string, l load, most float64, floor summary, targets []vegeta.Target) float64 {
	name = fmt.Sprint(name, ", ", l)
	a := b.attack(ctx, s, name, l, targets)
	f := figure{name: name, unit: "ms", orch: a.latency}.most(a.latency.p99, most, "p99 ≤ %g ms")
	if floor.n > 0 {
		f = f.beside("one Consul read", floor)
	}
	f.missed = f.missed || a.failed > 0
	b.add(f)
	b.note("%s: timed from the moment each call was due; of that this program itself was late by p50 %.2f, p99 %.2f ms.", name, a.late.p50, a.late.p99)
	return a.latency.p99
}

// memory adds the service's resident memory, which may be at most so many MiB.
func (b *bench) memory(s *service, when string, most float64) {
	mib := b.usage(s)[partOrch].rssMiB
	b.add(figure{name: "VmRSS of the service, " + when, unit: "MiB", orch: once(mib)}.most(mib, most, "≤ %g MiB"))
}
