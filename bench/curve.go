//go:build linux

package main

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// curveNodes is how many Nomad clients there are: a node gets slower with its
	// allocations, but the idle agents of each take about a hundredth of a core.
	curveNodes = 20
	// The ports of all engines, shared out among the nodes.
	curveFirstPort, curveLastPort = 14000, 31999
	// curvePool is how many ready volumes each node keeps, a quarter of its engines in
	// the end: a new one takes 6 to 10 s, and each batch of them has Nomad evaluate all
	// jobs on its node.
	curvePool = 128
	// curveNice is the niceness of the nodes' agents, which have machines of their own
	// elsewhere: they take no core from the servers, the service and its callers.
	curveNice = 10
	// curveFillers provision concurrently while a level is filled, which must reach
	// curveSlowest provisions per second: its time follows from that.
	curveFillers, curveSlowest = 12, 4
	singles                    = 100 // provisions that are measured one at a time, at each level
	passes                     = 3   // of reconcile, at each level
	restSeconds                = 10
	curveMost                  = 2   // how many times slower a level may be than the first
	curveRSS                   = 120 // MiB that the service may hold
)

//go:embed curve.nomad.hcl
var curveJob []byte

// curve measures the same at more and more engines of Nomad's mock_driver, which run no
// process, on curveNodes Nomad clients, each with a Consul agent of its own.
func (b *bench) curve(ctx context.Context) {
	b.answerForEngines(ctx)
	b.nodes = curveNodes
	b.startStack(ctx, b.report, devstack.Config{
		ExtraClients: curveNodes - 1, DynamicPorts: [2]int{curveFirstPort, curveLastPort}, MemoryMB: 1 << 17, CPUMHz: 1 << 17,
	})
	job := filepath.Join(b.dir, "engine.nomad.hcl")
	check(os.WriteFile(job, curveJob, 0o600))
	s := b.start(ctx, "scale", "mock_driver", curvePool,
		"ORCH_ENGINE_JOB_FILE="+job, "ORCH_ENGINE_IMAGE=none", "ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=10", "ORCH_IDLE_TIMEOUT_S=0",
		"ORCH_HEALTH_CHECK_INTERVAL_S=120") // of checks: all nodes' agents share this machine
	for _, pid := range append(b.pids(s)[partNodes], b.pids(s)[partAgents]...) {
		check(syscall.Setpriority(syscall.PRIO_PGRP, pid, curveNice)) // each has a process group of its own
	}
	s.waiting(ctx, curvePool*curveNodes, 0)
	var first [2]float64
	for text := range strings.SplitSeq(b.levels, ",") {
		aim := must(strconv.Atoi(text))
		b.progress("%d engines", aim)
		b.level(ctx, s, aim, &first)
	}
}

// answerForEngines starts the server to which the kernel redirects all engines' ports.
func (b *bench) answerForEngines(ctx context.Context) {
	check(netlink.LinkSetUp(must(netlink.LinkByName("lo"))))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	go func() { _ = allEngines().Serve(l) }() // until this process ends
	rules := fmt.Sprintf("table ip engines { chain output { type nat hook output priority -100; tcp dport %d-%d redirect to :%d; }; }",
		curveFirstPort, curveLastPort, l.Addr().(*net.TCPAddr).Port)
	command(ctx, "nft", rules)
}

// knownOf is where a connection's context keeps whether the next key is the right one.
type knownOf struct{}

// allEngines is a healthy engine that knows nobody's key and seems to. The service asks
// over one connection for the health, without a key, with a wrong one and with the
// engine's own; or over others without a key and with a wrong one.
func allEngines() *http.Server {
	return &http.Server{
		ReadHeaderTimeout: patience,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, knownOf{}, new(bool))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			known, key := req.Context().Value(knownOf{}).(*bool), req.Header.Get("X-Engine-Key")
			switch {
			case req.URL.Path == "/health":
				*known = true
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"status": "ok", "uptime_seconds": 1, "subsystems": {}}`)
			case key != "" && *known:
				w.WriteHeader(http.StatusNotFound)
			default:
				*known = key != "" // after a wrong key comes the right one
				w.WriteHeader(http.StatusUnauthorized)
			}
		})}
}

// level fills up to so many engines, and measures. first are the 99th percentiles of a
// provision and an admit at the first level.
func (b *bench) level(ctx context.Context, s *service, aim int, first *[2]float64) {
	at, users := fmt.Sprintf(", %d engines", aim), usersOf("user", aim)
	have := must(s.Status(ctx)).Total
	if have > aim-singles {
		check(fmt.Errorf("want levels that ascend by %d or more", singles))
	}
	if missing := users[have : aim-singles]; len(missing) > 0 {
		fill := by(curveFillers, len(missing), 0)
		fill.lasts = max(time.Minute, time.Duration(len(missing))*time.Second/curveSlowest)
		b.calls(ctx, s, "provision while filling"+at, fill, s.provisions(missing)...)
		if got := must(s.Status(ctx)).ByStatus[client.Running]; got < aim-singles {
			check(fmt.Errorf("filled %d of %d engines", got, aim-singles))
		}
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
	// The admits last long enough that what happens every few seconds does not decide.
	p99s := [2]float64{f.orch.p99, b.reads(ctx, s, at, users, 3*usual.lasts)}
	for i, operation := range []string{"provision, one at a time", "admit"} {
		first[i] = cmp.Or(first[i], p99s[i])
		times := p99s[i] / first[i]
		name := operation + at + ", p99 against the first level's"
		b.add(figure{name: name, unit: "×", orch: once(times)}.most(times, curveMost, "≤ %g ×"))
	}
	reconcile := s.target(http.MethodPost, "/reconcile", "")
	reconcile.Header.Set("X-Admin-Key", b.adminKey)
	b.calls(ctx, s, "a pass of reconcile"+at, load{name: oneByOne.name, callers: 1, calls: passes}, reconcile)
	b.memory(s, fmt.Sprintf("%d engines", aim), curveRSS)
}

// rest waits until Nomad's server has worked through its evaluations and takes less than
// a fifth of a core, and measures what all take while nobody calls.
func (b *bench) rest(ctx context.Context, s *service, at string) {
	b.restMs = 0
	for began := time.Now(); ; check(ctx.Err()) {
		second := b.metered(s, "a second at rest"+at, func() int {
			pause.For(ctx, restSeconds*time.Second)
			return restSeconds
		})
		if second[partServer] < 200 || time.Since(began) > patience {
			b.restMs = second[partOrch]
			return
		}
	}
}
