// Command orch-brain makes a snapshot of a brain, or restores one, on the brain's node. It
// takes no arguments: its order is in the file that ORCH_BRAIN_ORDER names. It writes
// reports to stdout, a line of JSON each. It exits with 1 if the same order may succeed later,
// because Nomad then starts it again, and otherwise with 0: the last report says whether the
// order is done. See docs/snapshots.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := worker.Run(ctx, os.Getenv(brain.OrderEnv), os.Stdout)
	stop()
	if brain.KindOf(err).Retry() {
		os.Exit(1)
	}
}
