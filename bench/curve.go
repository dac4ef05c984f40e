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
	// curveNodes is how many Nomad clients there are. With few, each is slow because it has
	// many allocations; with many, their idle agents use about a hundredth of a core each.
	curveNodes = 20
	// The ports of all engines, divided among the nodes.
	curveFirstPort, curveLastPort = 14000, 31999
	// curvePool is how many ready volumes each node keeps, a quarter of its engines at the
	// last level. A new volume takes 6 to 10 s, and for each batch of new volumes Nomad
	// evaluates all jobs on the node.
	curvePool = 128
	// curveNice is the niceness of the nodes' agents, so that they do not take CPU time from
	// the servers, the service and its callers. In production they have their own machines.
	curveNice = 10
	// curveFillers is how many callers provision concurrently while a level is filled. They
	// must reach curveSlowest provisions per second, which determines the time limit.
	curveFillers, curveSlowest = 12, 4
	singles                    = 100 // provisions measured one after another, at each level
	passes                     = 3   // of reconcile, at each level
	restSeconds                = 10
	curveMost                  = 2   // how many times slower than the first a level may be
	curveRSS                   = 120 // the service's maximum resident memory, in MiB
)

//go:embed curve.nomad.hcl
var curveJob []byte

// curve measures at increasing numbers of engines, on curveNodes Nomad clients with their own
// Consul agents. The engines use Nomad's mock_driver, so they have no processes.
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
		"ORCH_HEALTH_CHECK_INTERVAL_S=120") // few checks, because the agents of all nodes share this machine
	for _, pid := range append(b.pids(s)[partNodes], b.pids(s)[partAgents]...) {
		check(syscall.Setpriority(syscall.PRIO_PGRP, pid, curveNice)) // each agent is a process group
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

// knownOf is the key of a value in a connection's context: whether the next engine key is
// the right one.
type knownOf struct{}

// allEngines is a healthy engine that passes every key proof without knowing a key. It relies
// on the order of the service's requests: on one connection /health, then without a key, with
// a wrong key and with the engine's own; on other connections without a key and with a wrong
// one.
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
				*known = key != "" // the right key follows a wrong one
				w.WriteHeader(http.StatusUnauthorized)
			}
		})}
}

// level provisions engines until there are aim, and measures. first contains the 99th
// percentiles of a provision and an admit at the first level, in ms.
func (b *bench) level(ctx context.Context, s *service, aim int, first *[2]float64) {
	at, users := fmt.Sprintf(", %d engines", aim), usersOf("user", aim)
	have := must(s.Status(ctx)).Total
	if have > aim-singles {
		check(fmt.Errorf("each level must have at least %d engines more than the previous one", singles))
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
	// The admits last long enough to average over what happens only every few seconds.
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

// rest waits until Nomad's server has processed its evaluations and uses less than a fifth of
// a core, and measures the CPU time of all parts without calls.
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
