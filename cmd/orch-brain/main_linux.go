// Command orch-brain makes a snapshot of a brain, or restores one, on the brain's node. It
// takes no arguments: its order is in the file that ORCH_BRAIN_ORDER names. It writes
// reports to stdout, a line of JSON each. It exits with 1 if the same order may succeed later,
// because Nomad then starts it again, and otherwise with 0: the last report says whether the
// order is done. See docs/snapshots.md.
package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/integrity"
	"github.com/septemberai/orch/brain/worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if path := os.Getenv(integrity.FileEnv); path != "" { // a process of a drill, for one database
		err := integrity.CheckFile(ctx, path, os.Stdout)
		stop()
		if err != nil {
			os.Exit(1)
		}
		return
	}
	err := worker.Run(ctx, os.Getenv(brain.OrderEnv), output{})
	stop()
	if brain.KindOf(err).Retry() {
		os.Exit(1)
	}
}

// output is stdout, and for the last report also the next file of the task's log: Nomad may
// remove a container that ends quickly before it has collected what that wrote.
type output struct{}

func (output) Write(line []byte) (int, error) {
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); dir != "" && bytes.Contains(line, []byte(`"phase":"done"`)) {
		name := filepath.Join(dir, "logs", os.Getenv("NOMAD_TASK_NAME")+".stdout.1")
		if f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			_, _ = f.Write(line) // stdout has it, too
			_ = f.Close()
		}
	}
	return os.Stdout.Write(line)
}
