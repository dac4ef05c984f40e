//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/procfs"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

// The parts that take CPU time, in the order of the tables.
const (
	partOrch    = "orch"
	partAgents  = "Consul's clients"
	partServer  = "Nomad's server"
	partNodes   = "Nomad's clients"
	partEngines = "engines and helpers"
)

var processParts = []string{partOrch, "callers", "Consul's server", partAgents, partServer, partNodes, partEngines, "Vault"}

// pids are the processes of all parts but the engines.
func (r *rig) pids(s *service) map[string][]int {
	pids := map[string][]int{
		partOrch: {s.cmd.Process.Pid}, "callers": {os.Getpid()}, "Consul's server": {r.stack.PID(devstack.Consul)},
		partServer: {r.stack.PID(devstack.NomadServer)}, "Vault": {r.stack.PID(devstack.Vault)},
	}
	for i := range r.nodes {
		pids[partNodes] = append(pids[partNodes], r.stack.PID(devstack.NomadClient(i)))
		if i > 0 { // the first node has the Consul server for its agent
			pids[partAgents] = append(pids[partAgents], r.stack.PID(devstack.ConsulClient(i)))
		}
	}
	return pids
}

// usage is what processes have used since they began, and hold.
type usage struct{ cpuMs, rssMiB, peakMiB float64 }

// usage reads what all parts have used and hold.
func (r *rig) usage(s *service) map[string]usage {
	all, pids := map[string]usage{}, r.pids(s)
	for part, list := range pids {
		sum := usage{}
		for _, pid := range list {
			p := must(procfs.NewProc(pid))
			status := must(p.NewStatus())
			sum.cpuMs += 1000 * must(p.Stat()).CPUTime()
			sum.rssMiB, sum.peakMiB = sum.rssMiB+mib(status.VmRSS), sum.peakMiB+mib(status.VmHWM)
		}
		all[part] = sum
	}
	table, engines := processes(), usage{}
	for pid, stat := range table {
		isNode, below := slices.Contains(pids[partNodes], pid), table.below(pid, pids[partNodes])
		if isNode || below {
			engines.cpuMs += float64(stat.CUTime+stat.CSTime) * 10 // of those that ended, in ticks of 10 ms (proc(5))
		}
		if below {
			engines.cpuMs += 1000 * stat.CPUTime()
		}
	}
	all[partEngines] = engines
	return all
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// processTable is all processes by their id.
type processTable map[int]procfs.ProcStat

// processes leaves out those that end meanwhile.
func processes() processTable {
	table := processTable{}
	for _, p := range must(procfs.AllProcs()) {
		if stat, err := p.Stat(); err == nil {
			table[p.PID] = stat
		}
	}
	return table
}

// below says whether a process descends from one of others, or from one that docker
// runs for a container.
func (t processTable) below(pid int, others []int) bool {
	for stat, ok := t[pid]; ok; stat, ok = t[stat.PPID] {
		if slices.Contains(others, stat.PPID) || stat.Comm == "containerd-shim" || stat.Comm == "docker-proxy" {
			return true
		}
	}
	return false
}

// metered does something, which says how many times, and reports whose CPU time that
// takes: from what each process has used before and after. Of the service's, also what
// is left without what it takes at rest in the same time, where that is known.
func (b *bench) metered(s *service, what string, do func() (times int)) {
	before, cores, began := b.usage(s), coresTime(), time.Now()
	times := float64(max(1, do()))
	seconds, coresNow, after := time.Since(began).Seconds(), coresTime(), b.usage(s)
	row, sum := []string{what}, 0.0
	for _, part := range processParts {
		each := (after[part].cpuMs - before[part].cpuMs) / times
		row, sum = append(row, fmt.Sprintf("%.3f", each)), sum+each
	}
	net := (after[partOrch].cpuMs-before[partOrch].cpuMs)/times - b.restMs*seconds/times
	idle := coresNow.Idle + coresNow.Iowait - cores.Idle - cores.Iowait
	busy := 1 - idle/seconds/float64(runtime.NumCPU())
	b.cpu = append(b.cpu, append(row, fmt.Sprintf("%.3f", sum), fmt.Sprintf("%.3f", net), fmt.Sprintf("%.0f %%", 100*busy)))
}

// coresTime is what all cores did so far, in seconds.
func coresTime() procfs.CPUStat { return must(must(procfs.NewDefaultFS()).Stat()).CPUTotal }

const (
	// footprintEngines are compared with none.
	footprintEngines = 10
	// footprintRest is how long they idle before they are looked at, and footprintWatch
	// for how long their CPU time is counted then.
	footprintRest, footprintWatch = 5 * time.Second, 10 * time.Second
)

// footprint measures what one idle engine costs its node, with Nomad keeping what it
// prints, and without.
func (b *bench) footprint(ctx context.Context) {
	for _, driver := range b.drivers {
		for _, logs := range []string{"nomad", "driver"} {
			s := b.start(ctx, b.vars("footprint-"+driver+"-"+logs, driver, footprintEngines, map[string]string{"ORCH_ENGINE_LOGS": logs}))
			b.footprintOf(ctx, s, fmt.Sprintf("one idle engine, %s, logs by %s", driver, logs))
		}
	}
}

func (b *bench) footprintOf(ctx context.Context, s *service, name string) {
	users := usersOf("idle", footprintEngines)
	s.waiting(ctx, footprintEngines, 0)
	before := processes()
	each(ctx, users, fewAtOnce, s.provision)
	pause.For(ctx, footprintRest)
	after := processes()
	pause.For(ctx, footprintWatch)
	var helpers, enginePSS, helperPSS, rss, cpu float64 // of one engine
	for pid, then := range after {
		p, err := procfs.NewProc(pid)
		if _, old := before[pid]; err != nil || old || !after.below(pid, b.pids(s)[partNodes]) {
			continue
		}
		memory, _ := p.ProcSMapsRollup()                                               // 0 when it has ended
		if rss += mib(memory.Rss) / footprintEngines; then.Comm == "reference-engin" { // the kernel keeps 15 bytes
			enginePSS += mib(memory.Pss) / footprintEngines
		} else {
			helpers, helperPSS = helpers+1.0/footprintEngines, helperPSS+mib(memory.Pss)/footprintEngines
		}
		if now, err := p.Stat(); err == nil {
			cpu += (now.CPUTime() - then.CPUTime()) / footprintWatch.Seconds() * 100 / footprintEngines
		}
	}
	b.single(name+": PSS", "MiB", enginePSS+helperPSS)
	b.single("— of it the engine", "MiB", enginePSS)
	b.single(fmt.Sprintf("— of it %.1f helper processes", helpers), "MiB", helperPSS)
	b.single("— RSS of all", "MiB", rss)
	b.single("— CPU of all", "% of a core", cpu)
	each(ctx, users, fewAtOnce, s.destroy)
}
