package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

type toolsCommand struct{}

func (*toolsCommand) Synopsis() string { return "Find or build nomad, consul and vault" }

func (*toolsCommand) Help() string {
	return `Usage: orch-dev tools

  Make sure that nomad, consul and vault are there for "orch-dev dev" and the tests,
  and print where: from PATH, the cache (${XDG_CACHE_HOME:-~/.cache}/orch/bin),
  HashiCorp's releases where they can be reached (ORCH_TOOLS=build skips them),
  or built from the pinned modules in tools/.`
}

func (c *toolsCommand) Run(args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(os.Stderr, c.Help())
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	b, err := devstack.Tools(ctx, devstack.ToolOptions{Progress: func(line string) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), line)
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "orch-dev tools: "+err.Error())
		return 1
	}
	fmt.Printf("nomad   %s\nconsul  %s\nvault   %s\n", b.Nomad, b.Consul, b.Vault)
	return 0
}
