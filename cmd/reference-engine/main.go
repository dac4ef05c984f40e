// Command reference-engine is a small engine that obeys the engine contract
// (docs/tutorial-engine.md), including the brain. Tests and examples run it as orch's engine;
// authors of engines can read it as an example of the contract.
//
// Package engine documents the API, the environment and the test switches;
// `reference-engine -help` prints a summary.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/septemberai/orch/cmd/reference-engine/engine"
)

func main() {
	// The handler is registered first: without it, a SIGHUP that arrives while the engine
	// boots would end it.
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args, os.LookupEnv, reload, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "reference-engine:", err)
		os.Exit(1)
	}
}

// run starts one engine and serves until ctx ends.
func run(ctx context.Context, args []string, env engine.LookupEnv, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	if engine.WantsHelp(args) {
		_, err := io.WriteString(stdout, engine.Help)
		return err
	}
	cfg, err := engine.LoadConfig(args, env)
	if err != nil {
		return err
	}
	// The brain is accessible only to the engine, whatever umask it inherits.
	syscall.Umask(0o077)
	return engine.Run(ctx, cfg, slog.New(slog.NewTextHandler(stderr, nil)), reload)
}
