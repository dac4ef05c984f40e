//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/septemberai/orch/internal/devstack"
)

// load is a number of HTTP calls: either at a constant rate, which does not depend on the
// responses, or by callers, each of which calls again when it has its response.
type load struct {
	name       string
	perSecond  int           // the rate; 0: by callers
	callers    int           // 0: as many as the rate needs
	lasts      time.Duration // 0: until all calls have been made
	calls      int           // 0: determined by the time and the rate
	must       string        // what the body of each response must contain
	p99, least float64       // targets: maximum p99 in ms, minimum calls per second; 0: none
}

// by returns a load of calls by callers. least is the minimum of calls per second.
func by(callers, calls int, least float64) load {
	return load{name: fmt.Sprintf("%d by %d callers", calls, callers), callers: callers, calls: calls, least: least}
}

// answers are what a load measured, in milliseconds.
type answers struct {
	// latency at a rate begins when a call is due, so that it includes the wait of calls
	// behind a stalled one. late is the part until the call is sent.
	latency, late summary
	perSecond     float64 // successful calls
	seconds       float64
	failed        int
	first         error // of the first failed call
}

// run calls the targets in turn over a transport, and waits for all responses.
func (l load) run(ctx context.Context, transport http.RoundTripper, targets []vegeta.Target) (a answers, err error) {
	options := []func(*vegeta.Attacker){vegeta.Client(&http.Client{Transport: transport, Timeout: patience})}
	if l.callers > 0 {
		options = append(options, vegeta.Workers(uint64(l.callers)), vegeta.MaxWorkers(uint64(l.callers)))
	}
	if l.perSecond > 0 && l.calls == 0 { // so that all calls are made even if the rate is not reached
		l.calls, l.lasts = int(float64(l.perSecond)*l.lasts.Seconds()), 0
	}
	attacker := vegeta.NewAttacker(options...)
	defer context.AfterFunc(ctx, func() { attacker.Stop() })()
	pace := pacer{vegeta.ConstantPacer{Freq: l.perSecond, Per: time.Second}, l.calls}
	var took, lateness []float64
	began := time.Now()
	for res := range attacker.Attack(vegeta.NewStaticTargeter(targets...), pace, l.lasts, "") {
		late := time.Duration(0)
		if l.perSecond > 0 { // the first call is due after one interval
			due := began.Add(time.Duration(res.Seq+1) * time.Second / time.Duration(l.perSecond))
			late = max(0, res.Timestamp.Sub(due))
		}
		lateness, took = append(lateness, millis(late)), append(took, millis(late+res.Latency))
		if res.Error != "" || !strings.Contains(string(res.Body), l.must) {
			a.failed++
			a.first = cmp.Or(a.first, fmt.Errorf("%s: %s: %q", res.URL, res.Error, res.Body))
		}
	}
	a.latency, a.late, a.seconds = summarize(took), summarize(lateness), time.Since(began).Seconds()
	a.perSecond = float64(len(took)-a.failed) / a.seconds
	return a, ctx.Err()
}

// pacer waits with the kernel's clock, because Go's timers are up to a millisecond late in an
// idle process. It ends after calls, unless that is 0.
type pacer struct {
	vegeta.ConstantPacer
	calls int
}

// Pace implements vegeta.Pacer.
func (p pacer) Pace(elapsed time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if wait, stop = p.ConstantPacer.Pace(elapsed, hits); wait > 0 {
		ts := syscall.NsecToTimespec(int64(wait))
		_ = syscall.Nanosleep(&ts, nil) // after a signal, one call is early
	}
	return 0, stop || p.calls > 0 && hits >= uint64(p.calls)
}

// calls runs a load. It reports how long its calls took, how many of callers' calls succeeded
// per second, the CPU time by process, and the first failure.
func (b *bench) calls(ctx context.Context, s *service, name string, l load, targets ...vegeta.Target) (a answers) {
	name += ", " + l.name
	b.metered(s, name, func() int {
		a = must(l.run(ctx, s.HTTP.Transport, targets))
		return a.latency.n
	})
	f := figure{name: name, unit: "ms", orch: a.latency}.most(a.latency.p99, l.p99, "p99 ≤ %g ms")
	f.missed = f.missed || a.failed > 0
	b.add(f)
	if l.perSecond > 0 {
		b.add(figure{name: "— of it this program was late", unit: "ms", orch: a.late})
	} else if l.callers > 1 {
		b.add(figure{name: "— that succeed", unit: "1/s", orch: once(a.perSecond)}.least(a.perSecond, l.least, "≥ %g/s"))
	}
	if a.failed > 0 {
		b.note("%s: %d of %d calls failed, the first with: %v.", name, a.failed, a.latency.n, a.first)
	}
	return a
}

// target returns a call of the service with its product's key.
func (s *service) target(method, path, body string) vegeta.Target {
	header := http.Header{"X-Platform-Key": {s.PlatformKey}, "Content-Type": {"application/json"}}
	return vegeta.Target{Method: method, URL: s.BaseURL + path, Body: []byte(body), Header: header}
}

// targets returns a call for each user, who replaces %s in path and body.
func (s *service) targets(method, path, body string, users []string) (all []vegeta.Target) {
	for _, user := range users {
		of := strings.NewReplacer("%s", user)
		all = append(all, s.target(method, of.Replace(path), of.Replace(body)))
	}
	return all
}

func (s *service) admits(users []string) []vegeta.Target {
	return s.targets(http.MethodPost, "/engines/%s/admit", "", users)
}

func (s *service) provisions(users []string) []vegeta.Target {
	return s.targets(http.MethodPost, "/engines/provision", `{"user_id": "%s"}`, users)
}

const (
	loadEngines, loadWarm, loadCallers = 150, 100, 32 // provisioned engines, claimed engines, and callers
	admitted                           = `"admitted":true`
)

// The loads of reads.
var (
	usual    = load{name: "500/s open loop", perSecond: 500, lasts: 10 * time.Second, p99: 5}
	heavy    = load{name: "5000/s open loop", perSecond: 5000, lasts: 5 * time.Second, p99: 2, must: admitted}
	closed   = load{name: "32 callers without a pause", callers: loadCallers, lasts: 5 * time.Second, least: 5000, must: admitted}
	oneByOne = load{name: "one by one", callers: 1, calls: 200, p99: 50}
)

// reads measures admits and lists of users' engines. The figures' names end with where. The
// admits at the usual rate last as long as lasts; it returns their 99th percentile in ms.
func (b *bench) reads(ctx context.Context, s *service, where string, users []string, lasts time.Duration) (p99 float64) {
	rate := usual
	rate.lasts, rate.must = lasts, admitted
	p99 = b.calls(ctx, s, "admit of a running engine"+where, rate, s.admits(users)...).latency.p99
	b.calls(ctx, s, "admit of a running engine"+where, closed, s.admits(users)...)
	quota := b.stack.ConsulAddr + "/v1/kv/" + s.name + "/quota/" + s.productID
	b.calls(ctx, s, "one Consul read"+where, usual, vegeta.Target{Method: http.MethodGet, URL: quota})
	b.calls(ctx, s, "GET /engines/{user_id}"+where, usual, s.targets(http.MethodGet, "/engines/%s", "", users)...)
	var pages []vegeta.Target
	for i := range oneByOne.calls { // the prime 7919 spreads the offsets
		offset := i * 7919 % max(1, len(users)-100)
		pages = append(pages, s.target(http.MethodGet, fmt.Sprint("/engines?limit=100&offset=", offset), ""))
	}
	b.calls(ctx, s, "GET /engines, 100 from anywhere"+where, oneByOne, pages...)
	late := fmt.Sprint("/engines?limit=100&status=running&offset=", len(users)*4/5)
	b.calls(ctx, s, "GET /engines, 100 of a status, after 4/5 of them"+where, oneByOne, s.target(http.MethodGet, late, ""))
	b.calls(ctx, s, "GET /status"+where, oneByOne, s.target(http.MethodGet, "/status", ""))
	return p99
}

// load measures many concurrent callers. The engines' output is not collected, because
// Nomad's log helpers for so many engines would use a large part of a core.
func (b *bench) load(ctx context.Context) {
	s := b.start(ctx, "load", rawExec, loadEngines, "ORCH_ENGINE_LOGS=driver")
	f := b.newFloor(ctx, s, loadEngines)
	cold, claimed := usersOf("cold", loadEngines), usersOf("warm", loadWarm)
	s.waiting(ctx, loadEngines, 0)
	floor := b.loadByHand(ctx, s, f)
	ready := "provision, volume ready, raw_exec"
	a := b.calls(ctx, s, ready, by(loadCallers, loadEngines, 20), s.provisions(cold)...)
	b.add(figure{name: theSame, unit: "1/s", orch: once(a.perSecond)}.beside(hand, once(floor)))
	s.waiting(ctx, loadEngines, 0)
	b.reads(ctx, s, fmt.Sprintf(", %d engines", loadEngines), cold, usual.lasts)
	b.memory(s, fmt.Sprintf("%d engines", loadEngines), 120)
	b.calls(ctx, s, "admit of a running engine", heavy, s.admits(cold)...)
	b.calls(ctx, s, "destroy, raw_exec", by(loadCallers, loadEngines, 0), s.targets(http.MethodDelete, "/engines/%s", "", cold)...)
	b.calls(ctx, s, ready, by(loadEngines, loadEngines, 0), s.provisions(cold)...) // all concurrently
	each(ctx, cold, loadCallers, s.destroy)
	warm := s.warmProduct(ctx, loadWarm)
	s.waiting(ctx, loadEngines, loadWarm)
	b.calls(ctx, s, "provision, warm, raw_exec", by(loadCallers, loadWarm, 200), warm.provisions(claimed)...)
	each(ctx, claimed, loadCallers, warm.destroy)
}

// loadByHand runs all of a floor's engines, with the same concurrency as the service's
// callers, and ends them. It returns how many it started per second.
func (b *bench) loadByHand(ctx context.Context, s *service, f *floor) float64 {
	var all []*handJob
	for range loadEngines {
		all = append(all, <-f.ready)
	}
	w := startWatch()
	b.metered(s, "provision, volume ready, raw_exec by hand", func() int {
		each(ctx, all, loadCallers, func(ctx context.Context, h *handJob) { f.run(ctx, startWatch(), h) })
		return len(all)
	})
	w.step("all")
	each(ctx, all, loadCallers, func(ctx context.Context, h *handJob) { f.destroy(ctx, startWatch(), h) })
	return 1000 * float64(len(all)) / w.total
}

// The parts whose CPU time is measured, in the order of the tables. The rest is all other
// processes: on an otherwise idle machine, engines and their helper processes.
const (
	partOrch   = "orch"
	partAgents = "Consul's clients"
	partServer = "Nomad's server"
	partNodes  = "Nomad's clients"
	partRest   = "engines and the rest"
)

var processParts = []string{partOrch, "callers", "Consul's server", partAgents, partServer, partNodes, "Vault", partRest}

// pids returns the processes of all parts except the rest.
func (r *rig) pids(s *service) map[string][]int {
	pids := map[string][]int{
		partOrch: {s.cmd.Process.Pid}, "callers": {os.Getpid()}, "Consul's server": {r.stack.PID(devstack.Consul)},
		partServer: {r.stack.PID(devstack.NomadServer)}, "Vault": {r.stack.PID(devstack.Vault)},
	}
	for i := range r.nodes {
		pids[partNodes] = append(pids[partNodes], r.stack.PID(devstack.NomadClient(i)))
		if i > 0 { // the agent of the first node is the Consul server
			pids[partAgents] = append(pids[partAgents], r.stack.PID(devstack.ConsulClient(i)))
		}
	}
	return pids
}

// usage returns the CPU time that each part has used, and the idle time of all cores, in
// milliseconds.
func (r *rig) usage(s *service) (used map[string]float64, idle float64) {
	cores := must(must(procfs.NewDefaultFS()).Stat()).CPUTotal
	used = map[string]float64{partRest: 1000 * (cores.User + cores.Nice + cores.System + cores.IRQ + cores.SoftIRQ)}
	for part, pids := range r.pids(s) {
		for _, pid := range pids {
			used[part] += 1000 * must(must(procfs.NewProc(pid)).Stat()).CPUTime()
		}
		used[partRest] -= used[part]
	}
	return used, 1000 * (cores.Idle + cores.Iowait)
}

// memory reports the service's resident memory. Its target is at most most MiB.
func (b *bench) memory(s *service, when string, most float64) {
	mib := float64(must(must(procfs.NewProc(s.cmd.Process.Pid)).Stat()).ResidentMemory()) / (1 << 20)
	b.add(figure{name: "VmRSS of the service, " + when, unit: "MiB", orch: once(mib)}.most(mib, most, "≤ %g MiB"))
}

// metered calls do, which returns how many operations it made. It reports and returns the
// CPU time of each part per operation, in milliseconds. For the service it also reports the
// CPU time minus what the service uses at rest in the same time, if that was measured.
func (b *bench) metered(s *service, what string, do func() (times int)) map[string]float64 {
	before, idleBefore := b.usage(s)
	began := time.Now()
	times := float64(max(1, do()))
	ms := millis(time.Since(began))
	after, idle := b.usage(s)
	row, each, sum := []string{what}, map[string]float64{}, 0.0
	for _, part := range processParts {
		each[part] = (after[part] - before[part]) / times
		row, sum = append(row, fmt.Sprintf("%.3f", each[part])), sum+each[part]
	}
	net := each[partOrch] - b.restMs*ms/1000/times
	busy := 1 - (idle-idleBefore)/ms/float64(runtime.NumCPU())
	b.cpu = append(b.cpu, append(row, fmt.Sprintf("%.3f", sum), fmt.Sprintf("%.3f", net), fmt.Sprintf("%.0f %%", 100*busy)))
	return each
}
