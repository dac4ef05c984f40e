package main

import (
	"context"
	"fmt"
	"time"

	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/devstack"
)

func toolsCommand(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "tools", Synopsis: "Find or build nomad, consul and vault",
		About: `Make sure that "orch-dev dev" and the tests can use nomad, consul and vault, and
print their paths: from PATH, the cache (${XDG_CACHE_HOME:-~/.cache}/orch/bin),
HashiCorp's releases if they can be reached (ORCH_TOOLS=build skips them), or
built from the pinned modules in tools/.`,
		Examples: []string{"orch-dev tools", "ORCH_TOOLS=build orch-dev tools"},
		Run: func(ctx context.Context, _ *cmdline.Call) error {
			began := time.Now()
			b, err := devstack.Tools(ctx, devstack.ToolOptions{Progress: func(line string) {
				_, _ = fmt.Fprintf(env.Err, "%7.1fs  %s\n", time.Since(began).Seconds(), line)
			}})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "nomad   %s\nconsul  %s\nvault   %s\n", b.Nomad, b.Consul, b.Vault)
			return err
		},
	}
}
