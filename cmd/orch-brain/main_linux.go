// Command orch-brain makes a snapshot of a brain, or restores one, on the brain's node. It
// takes no arguments: its order is in the file that ORCH_BRAIN_ORDER names. It writes
// reports to stdout, a line of JSON each, and exits with 0 when the order is done. See
// docs/snapshots.md.
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
	if err != nil {
		os.Exit(1)
	}
}
