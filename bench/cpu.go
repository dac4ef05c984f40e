package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/septemberai/orch/internal/devstack"
)

// ticksPerSecond is USER_HZ, which Linux gives all programs (proc(5)).
const ticksPerSecond = 100

// cpuTime is what a process used since it began, and what those of its children
// used that have ended, in milliseconds.
func cpuTime(pid int) (own, ended float64, err error) {
	stat := firstLine(fmt.Sprintf("/proc/%d/stat", pid))
	field := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(field) < 15 {
		return 0, 0, fmt.Errorf("process %d has ended", pid)
	}
	var ms [4]float64 // utime, stime, cutime, cstime
	for i := range ms {
		ticks, err := strconv.ParseFloat(field[11+i], 64)
		if err != nil {
			return 0, 0, err
		}
		ms[i] = ticks * 1000 / ticksPerSecond
	}
	return ms[0] + ms[1], ms[2] + ms[3], nil
}

// The parts that take CPU time, in the order of the table.
const (
	partService = "service"
	partBench   = "callers"
	partConsul  = "Consul"
	partServer  = "Nomad's server"
	partClient  = "Nomad's client"
	partEngines = "engines and helpers"
	partVault   = "Vault"
)

var cpuParts = []string{partService, partBench, partConsul, partServer, partClient, partEngines, partVault}

// cpuSplit says whose CPU time something takes.
type cpuSplit struct {
	What string             `json:"what"`
	Each map[string]float64 `json:"ms_each"` // by part, for each time that it was done
	Busy float64            `json:"busy"`    // of all cores, by whomever
}

// metered does something, which says how often, and reports whose CPU time that
// takes.
func (b *bench) metered(s *service, what string, do func() (times int, err error)) error {
	before, err := b.rig.cpu(s)
	if err != nil {
		return err
	}
	busy, idle := coresTime()
	n, err := do()
	if err != nil {
		return err
	}
	after, err := b.rig.cpu(s)
	if err != nil {
		return err
	}
	busyNow, idleNow := coresTime()
	split := cpuSplit{What: what, Each: map[string]float64{}, Busy: (busyNow - busy) / max(1, busyNow-busy+idleNow-idle)}
	for part, ms := range after {
		split.Each[part] = (ms - before[part]) / float64(max(1, n))
	}
	b.rep.CPU = append(b.rep.CPU, split)
	return nil
}

// cpu is what the parts have used since they began, in milliseconds.
func (r *rig) cpu(s *service) (map[string]float64, error) {
	used := map[string]float64{}
	agents := map[string]int{
		partService: s.cmd.Process.Pid, partBench: os.Getpid(), partConsul: r.stack.PID(devstack.Consul), partVault: r.stack.PID(devstack.Vault),
		partServer: r.stack.PID(devstack.NomadServer), partClient: r.stack.PID(devstack.NomadClient(0)),
	}
	for part, pid := range agents {
		own, ended, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		used[part] = own
		if part == partClient {
			used[partEngines] = ended
		}
	}
	table, err := processes()
	if err != nil {
		return nil, err
	}
	for pid := range table {
		client := func(p running) bool { return p.pid == agents[partClient] }
		if client(table[pid]) || !table.from(pid, client) {
			continue
		}
		if own, ended, err := cpuTime(pid); err == nil { // else it has ended, and counts with its parent
			used[partEngines] += own + ended
		}
	}
	return used, nil
}

// coresTime is how long all cores have worked and rested, in ticks.
func coresTime() (busy, idle float64) {
	for i, field := range strings.Fields(firstLine("/proc/stat")) {
		ticks, err := strconv.ParseFloat(field, 64)
		switch {
		case err != nil || i > 8: // its name; a guest's time is its user's too
		case i == 4 || i == 5: // idle, iowait
			idle += ticks
		default:
			busy += ticks
		}
	}
	return busy, idle
}
