//go:build linux

// Command bench measures the service, and compares it in the same run with Nomad, docker and
// a script without the service. It prints the figures and their targets as Markdown. It starts
// its own agents and service processes on free ports, and leaves nothing behind, also after
// Ctrl-C. Run it in the root of the checkout after `make build`:
//
//	go run ./bench [-n rounds] [-only part,part]
//	go run ./bench -only scale [-engines 100,1000,5000,10000]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/septemberai/orch/internal/devstack"
)

// part is a piece of the benchmark that can be run without the others.
type part struct {
	name string
	run  func(*bench, context.Context)
}

// parts are the parts in the order of the report.
var parts = []part{
	{"rounds", (*bench).rounds},       // every operation alone, compared with the same without the service
	{"load", (*bench).load},           // many concurrent calls: how many per second, and how long they take
	{"snapshots", (*bench).snapshots}, // snapshots, restores and forks, compared with tar, zstd and age, and with restic
	{scale, (*bench).curve},           // operations and calls at increasing numbers of engines
}

// scale is a part that cannot be combined with others, because it needs its own stack.
const scale = "scale"

// chosen returns the parts that a comma-separated list names.
func chosen(list string) (run []part, err error) {
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
		if i < 0 || name == scale && list != scale {
			return nil, fmt.Errorf("-only: part %q does not exist, or cannot be combined with others", name)
		}
		run = append(run, parts[i])
	}
	return run, nil
}

// bench takes the measurements.
type bench struct {
	*rig
	*report
	n      int    // rounds
	levels string // of the scale curve
	rec    recorder
}

func main() {
	b := &bench{rec: recorder{}, report: newReport(), rig: &rig{nodes: 1}}
	flag.IntVar(&b.n, "n", 20, "how often each operation is measured")
	flag.StringVar(&b.levels, "engines", "100,1000,5000,10000", "levels of the scale curve: numbers of engines, each at least 100 more than the previous one")
	only := flag.String("only", "rounds,load,snapshots", "comma-separated parts (rounds, load, snapshots), or only scale, which needs root and nft")
	flag.Parse()
	run, err := chosen(*only)
	if err == nil && *only == scale { // in a network namespace, because engines' ports are redirected
		inside, code, isolated := devstack.IsolatedUser()
		if err = isolated; err == nil && !inside {
			os.Exit(code)
		}
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the clean-up
		err = b.measure(ctx, run)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measure runs parts, each with its own services, and prints the report, even if a part
// failed. It ends everything that it started.
func (b *bench) measure(ctx context.Context, run []part) error {
	err := caught(func() {
		if run[0].name != scale {
			b.startStack(ctx, b.report, devstack.Config{CPUMHz: mostEngines * cpuMHz, MemoryMB: mostEngines * memoryMB})
		}
		for _, p := range run {
			b.progress("%s", p.name)
			p.run(b, ctx)
			b.endServices()
		}
	})
	if err != nil && len(b.services) > 0 {
		logs, _ := exec.Command("sh", "-c", "tail -n 20 "+b.dir+"/*.log").CombinedOutput()
		err = fmt.Errorf("%w; the services logged:\n%s", err, logs)
	}
	b.progress("ending what was started")
	err = errors.Join(err, caught(b.endServices))
	if b.stack != nil {
		err = errors.Join(err, b.stack.Stop())
	}
	fmt.Print(b.markdown())
	return err
}

// failure is the error that ends a run.
type failure struct{ error }

// check ends the function that caught runs, if err is not nil.
func check(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// must returns v if err is nil, and otherwise ends the function that caught runs.
func must[T any](v T, err error) T { check(err); return v }

// caught runs do and returns the error with which check or must ended it.
func caught(do func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			err = r.error
		default:
			panic(r)
		}
	}()
	do()
	return nil
}
