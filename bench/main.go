// Command bench measures the service against what Nomad, a script and docker do
// by themselves, side by side in one run, and puts the figures beside their
// targets: on stdout and into bench/results.
//
// It starts agents and service processes of its own on free ports and leaves
// nothing behind, also after Ctrl-C. Run it at the root of the checkout after
// `make build`:
//
//	go run ./bench [-n rounds] [-only part,part]
//	go run ./bench -only scale [-engines 100,1000,5000,10000] [-profiles dir]
//	go run ./bench -paste bench/results/FILE.json
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// part is a piece of the benchmark that can be run without the others.
type part struct {
	name, does string
	run        func(*bench, context.Context) error
}

// parts are in the order of the report.
var parts = []part{
	{"rounds", "every operation, one at a time, beside what does the same without the service", (*bench).rounds},
	{"fleet", "reads and admits of many running engines", (*bench).fleet},
	{"lists", "lists of many rows", (*bench).lists},
	{"load", "provisions, claims and destroys per second", (*bench).load},
	{"burst", "many provisions at the same moment", (*bench).burst},
	{"footprint", "what an idle engine costs its node", (*bench).footprint},
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// chosen are the parts that a comma-separated list names; all for "".
func chosen(list string) ([]part, error) {
	if list == "" {
		return parts, nil
	}
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.Contains(partNames(), name) {
			return nil, fmt.Errorf("there is no part %q; the parts are %s", name, strings.Join(partNames(), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !slices.Contains(wanted, p.name) }), nil
}

func main() {
	rounds := flag.Int("n", 20, "how often each operation is measured")
	only := flag.String("only", "", "comma-separated parts to run: "+strings.Join(partNames(), ", ")+" (default all); or scale: the scale curve, as root, with nft")
	engines := flag.String("engines", "100,1000,5000,10000", "levels of the scale curve, ascending")
	profiles := flag.String("profiles", "", "directory to keep Go's profiles of the service in, for go tool pprof: at each level of the scale curve")
	saved := flag.String("paste", "", "measure nothing; put the tables of this report (.json) into "+performancePage)
	flag.Parse()
	if *profiles != "" && *only != "scale" {
		fmt.Fprintln(os.Stderr, "bench: -profiles goes with -only scale")
		os.Exit(2)
	}
	if *only == "scale" {
		os.Exit(curveMain(*engines, *profiles))
	}
	run, err := chosen(*only)
	if *rounds < 1 || flag.NArg() > 0 || err != nil {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		flag.Usage()
		os.Exit(2)
	}
	if *saved != "" {
		if err := paste(*saved); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the clean-up
	err = measure(ctx, *rounds, run)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench takes the measurements.
type bench struct {
	rig      *rig
	rec      recorder
	rep      *report
	n        int // rounds
	progress func(format string, args ...any)
}

// measure runs the parts and writes the report. When it returns, nothing that it
// started is left.
func measure(ctx context.Context, rounds int, run []part) (err error) {
	began := time.Now()
	b := &bench{rec: recorder{}, n: rounds, rep: newReport(ctx, began, rounds)}
	b.progress = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if b.rig, err = startRig(ctx, func(line string) { b.progress("%s", line) }); err != nil {
		return err
	}
	defer func() {
		b.progress("ending what was started")
		err = errors.Join(err, b.rig.close())
	}()
	if err := b.rep.describe(ctx, b.rig); err != nil {
		return err
	}
	err = b.runAll(ctx, run)
	b.rep.Seconds = time.Since(began).Seconds()
	fmt.Print(b.rep.markdown())
	// What is known so far is not lost by the part that failed.
	return errors.Join(err, b.rep.save(err == nil && len(run) == len(parts)))
}

// runAll runs parts one after another, each with services of its own.
func (b *bench) runAll(ctx context.Context, run []part) error {
	for _, p := range run {
		b.progress("%s: %s", p.name, p.does)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w%s", p.name, err, b.rig.tails())
		}
		b.rep.Parts = append(b.rep.Parts, p.name)
		if err := b.rig.endServices(); err != nil {
			return fmt.Errorf("after %s: %w", p.name, err)
		}
	}
	return nil
}
