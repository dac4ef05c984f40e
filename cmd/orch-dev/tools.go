package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/devstack"
)

func toolsCommand(env *cmdline.Env) *cmdline.Command {
	terraform := false
	return &cmdline.Command{
		Name: "tools", Synopsis: "Find or build nomad, consul and vault",
		About: `Make sure that "orch-dev dev" and the tests can use nomad, consul and vault, and
print their paths: from PATH, the cache (${XDG_CACHE_HOME:-~/.cache}/orch/bin),
HashiCorp's releases if they can be reached (ORCH_TOOLS=build skips them), or
built from the pinned modules in tools/.`,
		Examples: []string{"orch-dev tools", "ORCH_TOOLS=build orch-dev tools"},
		Flags: func(f *flag.FlagSet) {
			f.BoolVar(&terraform, "terraform", false, "build HashiCorp's Terraform provider for Vault, too, for the tests of the Terraform modules")
		},
		Run: func(ctx context.Context, _ *cmdline.Call) error {
			began := time.Now()
			progress := func(line string) {
				_, _ = fmt.Fprintf(env.Err, "%7.1fs  %s\n", time.Since(began).Seconds(), line)
			}
			b, err := devstack.Tools(ctx, devstack.ToolOptions{Progress: progress})
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(env.Out, "nomad   %s\nconsul  %s\nvault   %s\n", b.Nomad, b.Consul, b.Vault); err != nil || !terraform {
				return err
			}
			provider, err := devstack.VaultProvider(ctx, progress)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "terraform-provider-vault  %s\n", provider)
			return err
		},
	}
}
