package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// footprintEngines are compared with none.
	footprintEngines = 10
	// footprintRest is how long they idle before they are looked at.
	footprintRest = 5 * time.Second
	// footprintWatch is for how long their CPU time is counted then.
	footprintWatch = 10 * time.Second
)

// footprintResult is what one idle engine takes.
type footprintResult struct {
	driver, logs   string
	engine, helper process // its own processes, and those that Nomad or docker run for it
	cpu            float64 // of all of them, in percent of a core
}

// process is the memory of processes, in MiB: rss counts pages that they share with
// others once for each, pss by their part.
type process struct{ n, rss, pss float64 }

// footprint measures what one idle engine costs its node, with Nomad keeping what
// it prints, and without.
func (b *bench) footprint(ctx context.Context) error {
	var results []footprintResult
	for _, driver := range b.rig.drivers() {
		for _, logs := range []string{"nomad", "driver"} {
			b.progress("footprint: %d engines, %s, logs by %s", footprintEngines, driver, logs)
			res, err := b.footprintOf(ctx, driver, logs)
			if err != nil {
				return err
			}
			results = append(results, res)
		}
	}
	b.rep.addFootprint(results)
	return nil
}

func (b *bench) footprintOf(ctx context.Context, driver, logs string) (res footprintResult, err error) {
	s, err := b.rig.start(ctx, b.rig.vars("footprint-"+driver+"-"+logs, driver, footprintEngines, map[string]string{"ORCH_ENGINE_LOGS": logs}))
	if err != nil {
		return res, err
	}
	if err := s.poolFull(ctx); err != nil {
		return res, err
	}
	before, err := processes()
	if err != nil {
		return res, err
	}
	users := usersOf("idle", footprintEngines)
	if err := each(ctx, users, fleetAtOnce, func(ctx context.Context, user string) error { return provisionOf(s.Client, user)(ctx) }); err != nil {
		return res, err
	}
	if err := wait(ctx, footprintRest); err != nil {
		return res, err
	}
	after, err := processes()
	if err != nil {
		return res, err
	}
	res = footprintResult{driver: driver, logs: logs}
	used := map[int]float64{} // CPU time by then
	for pid, p := range after {
		if _, old := before[pid]; old || !after.belongs(pid, b.rig.stack.Dir) {
			continue
		}
		into := &res.helper
		if p.name == "reference-engin" { // the kernel keeps 15 bytes
			into = &res.engine
		}
		into.n += 1.0 / footprintEngines
		into.rss += p.memory("Rss:") / footprintEngines
		into.pss += p.memory("Pss:") / footprintEngines
		if used[pid], _, err = cpuTime(pid); err != nil {
			delete(used, pid) // it has ended
		}
	}
	watched := time.Now()
	if err := wait(ctx, footprintWatch); err != nil {
		return res, err
	}
	share := 100 / millis(time.Since(watched)) / footprintEngines
	for pid, then := range used {
		if now, _, err := cpuTime(pid); err == nil {
			res.cpu += (now - then) * share
		}
	}
	if _, err := destroys(ctx, s.Client, users); err != nil {
		return res, err
	}
	return res, b.rig.end(s)
}

// running is a process as /proc shows it.
type running struct {
	pid, parent int
	name        string // the first 15 bytes of its executable's
	command     string
}

type processTable map[int]running

// processes leaves out those that end meanwhile.
func processes() (processTable, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	table := processTable{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		stat, serr := os.ReadFile(filepath.Join(dir, "stat"))
		command, cerr := os.ReadFile(filepath.Join(dir, "cmdline"))
		// pid (name) state parent ...; a name may hold anything.
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if serr != nil || cerr != nil || open < 0 || end < open {
			continue
		}
		p := running{pid: pid, name: string(stat[open+1 : end]), command: string(bytes.ReplaceAll(command, []byte{0}, []byte(" ")))}
		if _, err := fmt.Sscanf(string(stat[end+1:]), " %1s %d", new(string), &p.parent); err != nil {
			continue
		}
		table[pid] = p
	}
	return table, nil
}

// belongs says whether a process runs for an engine: below an agent whose files
// are in dir, or for a container. Docker's processes do not name the stack; on a
// machine where others start containers meanwhile theirs count too.
func (t processTable) belongs(pid int, dir string) bool {
	return t.from(pid, func(p running) bool {
		return strings.Contains(p.command, dir) || strings.HasPrefix(p.name, "containerd-shim") || p.name == "docker-proxy"
	})
}

// from says whether a process is one, or comes from one.
func (t processTable) from(pid int, one func(running) bool) bool {
	for p, ok := t[pid]; ok; p, ok = t[p.parent] {
		if one(p) {
			return true
		}
	}
	return false
}

// memory is a line of a process's memory in MiB; 0 when it has ended.
func (p running) memory(line string) float64 {
	mib, _ := procMiB(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid), line)
	return mib
}
