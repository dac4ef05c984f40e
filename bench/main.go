// Command bench measures the service against what Nomad and docker do by
// themselves, side by side in one run, and puts the figures beside their
// targets: on stdout and into bench/results.
//
// It starts agents and service processes of its own on free ports and leaves
// nothing behind, also after Ctrl-C. Run it at the root of the checkout after
// `make build`:
//
//	go run ./bench [-n rounds]
//	go run ./bench -only scale [-engines 100,1000,5000,10000]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	rounds := flag.Int("n", 20, "how often each operation is measured")
	only := flag.String("only", "", "scale: nothing but the scale curve; as root, with nft")
	engines := flag.String("engines", "100,1000,5000,10000", "levels of the scale curve, ascending")
	flag.Parse()
	if *only == "scale" {
		os.Exit(curveMain(*engines))
	}
	if *only != "" || *rounds < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the clean-up
	err := run(ctx, *rounds)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures everything and writes the report. When it returns, nothing that
// it started is left.
func run(ctx context.Context, rounds int) (err error) {
	began := time.Now()
	progress := func(line string) { fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), line) }
	rep := newReport(ctx, began, rounds)
	r, err := startRig(ctx, rounds, progress)
	if err != nil {
		return err
	}
	defer func() {
		progress("ending what was started")
		err = errors.Join(err, r.close())
	}()
	if err := rep.describe(ctx, r); err != nil {
		return err
	}
	if err := measure(ctx, r, rounds, rep, progress); err != nil {
		return err
	}
	rep.Seconds = time.Since(began).Seconds()
	fmt.Print(rep.markdown())
	return rep.save()
}

// measure runs the rounds, then the fleet, and fills the report.
func measure(ctx context.Context, r *rig, rounds int, rep *report, progress func(string)) error {
	b := &bench{rig: r, rec: recorder{}}
	for i := range warmUps + rounds {
		if i == warmUps {
			b.rec = recorder{}
		}
		if i == warmUps || i > warmUps && (i-warmUps)%5 == 0 {
			progress(fmt.Sprintf("round %d of %d", i-warmUps+1, rounds))
		}
		if err := b.round(ctx, i); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	progress(fmt.Sprintf("%d engines, then %d reads/s for %s", fleetSize, readRate, readTime))
	fleet, err := b.fleet(ctx)
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("lists of %d rows", rowsAtScale))
	scale, err := b.scale(ctx)
	if err != nil {
		return err
	}
	rep.fill(b.rec, fleet, scale)
	return nil
}
