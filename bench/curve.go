//go:build linux

package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// curveNodes is how many Nomad clients there are: a node gets slower with its
	// allocations, but the agents of each take about a hundredth of a core of this
	// machine with nothing to do.
	curveNodes = 20
	// curveFirstPort and curveLastPort are the ports of all engines, shared out among
	// the nodes.
	curveFirstPort, curveLastPort = 14000, 31999
	// curvePool is how many ready volumes each node keeps: a new one takes 6 to 10 s, and
	// each batch of them has Nomad evaluate all jobs on its node. A quarter of the engines
	// that a node has in the end.
	curvePool = 128
	// curveNice is the niceness of the nodes' agents: what one node does by itself takes
	// no core from the servers, the service and its callers where each has its own
	// machine.
	curveNice = 10
	// curveFillers provision concurrently while a level is filled, which must reach
	// curveSlowest provisions per second: its time follows from that.
	curveFillers, curveSlowest = 12, 4
	// singles is how many provisions are measured, one at a time, at each level.
	singles = 100
	// curveMost is how many times slower the last level may be than the first, and
	// curveRSS how much the service may hold there, in MiB.
	curveMost, curveRSS = 2, 120
	// restFor is how long is looked at what everything takes while nobody calls.
	restFor = 10 * time.Second
	// passes is how many passes of reconcile are measured.
	passes = 3
)

//go:embed curve.nomad.hcl
var curveJob []byte

// curve measures the same at more and more engines of Nomad's mock_driver, which run no
// process, on one Nomad server, one Consul server, Vault, and curveNodes Nomad clients
// each with a Consul agent of its own.
func (b *bench) curve(ctx context.Context) {
	b.answerForEngines(ctx)
	b.nodes = curveNodes
	b.startStack(ctx, b.report, devstack.Config{
		ExtraClients: curveNodes - 1, DynamicPorts: [2]int{curveFirstPort, curveLastPort}, MemoryMB: 1 << 17, CPUMHz: 1 << 17,
	})
	job := filepath.Join(b.dir, "engine.nomad.hcl")
	check(os.WriteFile(job, curveJob, 0o600))
	s := b.start(ctx, b.vars("scale", "mock_driver", curvePool, map[string]string{
		"ORCH_ENGINE_JOB_FILE": job, "ORCH_ENGINE_IMAGE": "none", "ORCH_ENGINE_CPU_MHZ": "10", "ORCH_ENGINE_MEMORY_MB": "10", "ORCH_IDLE_TIMEOUT_S": "0",
		"ORCH_LOG_LEVEL": "debug", "ORCH_HEALTH_CHECK_INTERVAL_S": "120", // of checks: all nodes' agents share this machine
	}))
	for _, pid := range append(b.pids(s)[partNodes], b.pids(s)[partAgents]...) {
		check(syscall.Setpriority(syscall.PRIO_PGRP, pid, curveNice)) // each has a process group of its own
	}
	s.waiting(ctx, curvePool*curveNodes, 0)
	first, last := map[string]float64{}, map[string]float64{}
	for text := range strings.SplitSeq(b.levels, ",") {
		aim := must(strconv.Atoi(text))
		b.progress("%d engines", aim)
		b.level(ctx, s, aim, last)
		if len(first) == 0 {
			maps.Copy(first, last)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		times := last[name] / first[name]
		b.add(figure{name: name + ", p99 of the last level against the first", unit: "×", orch: once(times)}.most(times, curveMost, "≤ %g ×"))
	}
	b.memory(s, "at the last level", curveRSS)
}

// answerForEngines starts the server that all engines are. The kernel redirects the
// engines' ports to it.
func (b *bench) answerForEngines(ctx context.Context) {
	check(netlink.LinkSetUp(must(netlink.LinkByName("lo"))))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	b.stub = allEngines()
	go func() { _ = b.stub.Serve(l) }() // until close
	rules := fmt.Sprintf("table ip engines { chain output { type nat hook output priority -100; tcp dport %d-%d redirect to :%d; }; }",
		curveFirstPort, curveLastPort, l.Addr().(*net.TCPAddr).Port)
	command(ctx, "nft", rules)
}

// lastOf is where a connection's last request is kept in its context.
type lastOf struct{}

// allEngines is a healthy engine that knows nobody's key and seems to: the service asks
// for the health, without a key, with a wrong one and with the engine's own, in this
// order over one connection; or over others without a key and with a wrong one, and with
// the engine's own where it asked for the health.
func allEngines() *http.Server {
	return &http.Server{
		ReadHeaderTimeout: patience,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, lastOf{}, new(string))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			last := req.Context().Value(lastOf{}).(*string)
			switch {
			case req.URL.Path == "/health":
				*last = "health"
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"status": "ok", "uptime_seconds": 1, "subsystems": {}}`)
			case req.Header.Get("X-Engine-Key") == "":
				*last = "no key"
				w.WriteHeader(http.StatusUnauthorized)
			case *last == "health" || *last == "wrong key":
				w.WriteHeader(http.StatusNotFound)
			default:
				*last = "wrong key"
				w.WriteHeader(http.StatusUnauthorized)
			}
		})}
}

// level fills up to so many engines, and measures; p99s are by operation.
func (b *bench) level(ctx context.Context, s *service, aim int, p99s map[string]float64) {
	at, users := fmt.Sprintf(", %d engines", aim), usersOf("user", aim)
	have := must(s.Status(ctx)).Total
	if have > aim-singles {
		check(fmt.Errorf("want levels that ascend by %d or more", singles))
	}
	if missing := users[have : aim-singles]; len(missing) > 0 {
		fill := load{callers: curveFillers, calls: len(missing), lasts: max(time.Minute, time.Duration(len(missing))*time.Second/curveSlowest)}
		a := b.attack(ctx, s, "provision while filling"+at, fill, s.provisions(missing))
		if a.failed > 0 || a.latency.n < len(missing) {
			check(fmt.Errorf("filled %d of %d engines in %.0f s; of those that failed the first: %w", a.latency.n-a.failed, len(missing), a.seconds, a.first))
		}
		b.add(figure{name: "provisions while filling" + at, unit: "ms", orch: a.latency})
		b.single("— of them", "1/s", a.perSecond)
	}
	b.rest(ctx, s, at)
	name := "provision, one at a time" + at
	b.metered(s, name, func() int {
		for _, user := range users[aim-singles:] {
			s.timed(ctx, b.rec, name, s.provision, user)
		}
		return singles
	})
	b.addSteps(b.rec, name)
	f := figure{name: name, unit: "ms", orch: b.rec.summary(name), own: b.rec.summary(ownOf(name))}
	b.add(f)
	b.add(figure{name: "— of it the first write of the audit log", unit: "ms", orch: b.rec.summary(stepOf(name, "audit-begin"))})
	p99s["provision, one at a time"] = f.orch.p99
	// For long enough that what happens every few seconds does not decide.
	p99s["admit"] = b.reads(ctx, s, at, users, 3*usual.lasts, summary{}, 0)
	var took []float64
	b.metered(s, "a pass of reconcile"+at, func() int {
		for range passes {
			check(s.admin.Reconcile(ctx))
			ms, _ := s.logged(ctx, `"reconciled"`)["ms"].(float64)
			took = append(took, ms)
		}
		return passes
	})
	b.add(figure{name: "a pass of reconcile" + at, unit: "ms", orch: summarize(took)})
	b.holds(ctx, s, at)
}

// rest waits until Nomad's server has worked through its evaluations, and measures what
// all take while nobody calls.
func (b *bench) rest(ctx context.Context, s *service, at string) {
	began := time.Now()
	for {
		before := b.usage(s)
		if !pause.For(ctx, restFor) {
			check(ctx.Err())
		}
		after := b.usage(s)
		taken := func(part string) float64 { return (after[part].cpuMs - before[part].cpuMs) / restFor.Seconds() }
		if taken(partServer) < 200 || time.Since(began) > patience { // a fifth of a core
			b.restMs = taken(partOrch)
			b.single("at rest after"+at, "s", time.Since(began).Seconds())
			for _, part := range processParts {
				b.single("— CPU at rest, "+part, "% of a core", taken(part)/10)
			}
			return
		}
	}
}

// holds measures what the processes and the stores hold.
func (b *bench) holds(ctx context.Context, s *service, at string) {
	all := b.usage(s)
	for _, part := range processParts {
		b.single("VmRSS"+at+", "+part, "MiB", all[part].rssMiB)
	}
	b.single("— the most that orch ever held", "MiB", all[partOrch].peakMiB)
	b.single("— Go heap of orch in use after a collection", "MiB", s.heapMiB(ctx))
	bytes, rows := 0, 0
	for _, kind := range []string{"engine-ids/", "engines/"} {
		var pairs []struct {
			Key   string
			Value []byte
		}
		check(json.Unmarshal(get(ctx, b.stack.ConsulAddr+"/v1/kv/"+s.name+"/"+kind+"?recurse"), &pairs))
		rows = len(pairs)
		for _, p := range pairs {
			bytes += len(p.Key) + len(p.Value)
		}
	}
	b.single("row and index in Consul of each engine"+at, "B", float64(bytes)/float64(rows))
	b.single("— snapshot of Consul, compressed", "KiB", float64(len(get(ctx, b.stack.ConsulAddr+"/v1/snapshot")))/1024)
	b.single("— snapshot of Nomad, compressed", "KiB", float64(len(get(ctx, b.stack.NomadAddr+"/v1/operator/snapshot")))/1024)
	audit := 0.0
	for _, file := range must(filepath.Glob(filepath.Join(b.dir, "scale.db*"))) { // with what is not checkpointed
		audit += float64(must(os.Stat(file)).Size()) / 1024
	}
	b.single("— audit file", "KiB", audit)
}

// get is the body of an answer of 200.
func get(ctx context.Context, url string) []byte {
	resp := must(http.DefaultClient.Do(must(http.NewRequestWithContext(ctx, http.MethodGet, url, nil))))
	defer func() { _ = resp.Body.Close() }()
	body := must(io.ReadAll(resp.Body))
	if resp.StatusCode != http.StatusOK {
		check(fmt.Errorf("%s: %s: %s", url, resp.Status, body))
	}
	return body
}
