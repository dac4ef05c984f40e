package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/septemberai/orch/client"
)

type registryCommand struct{}

func (*registryCommand) Synopsis() string { return "Show how the registry stands" }

func (*registryCommand) Help() string {
	return `Usage: orch registry status [-json]

  Show whether the registry (Consul) and the keys (Vault) are whole: ok, or since
  when they are not. After the registry went back in time it is recovered by itself;
  "orch engine rekey" gives engines new keys for those that Vault has lost.

  -json  print it as JSON
` + adminHelp
}

func (c *registryCommand) Run(args []string) int {
	var asJSON bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Registry(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(r)
		}
		return printRegistry(r)
	})
}

func printRegistry(r *client.RegistryStatus) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { _, _ = fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("Registry", r.State)
	if r.Why != "" {
		row("  why", r.Why)
		row("  since", moment(r.Since))
	}
	row("Keys", r.Keys)
	if !r.KeysLostSince.IsZero() {
		row("  since", moment(r.KeysLostSince))
	}
	row("Keys missing", r.KeysMissing)
	row("Quarantined", r.Quarantined)
	row("Deployment", dash(r.DeploymentID))
	row("Registry id", dash(r.RegistryID))
	row("Epoch", r.Epoch)
	if l := r.LastRecovery; l != nil {
		row("Last recovery", l.Why)
		row("  began", moment(l.BeganAt))
		row("  ended", moment(l.EndedAt))
		row("  engines", fmt.Sprintf("%d rebuilt, %d corrected, %d whose brain is missing", l.Rebuilt, l.Corrected, l.Missing))
		row("  products", l.Products)
		row("  pooled volumes", fmt.Sprintf("%d forgotten", l.Pooled))
	}
	return w.Flush()
}

// moment is a time in UTC, to the second.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

type recoverCommand struct{}

func (*recoverCommand) Synopsis() string {
	return "Rebuild what the registry has lost, from Vault and Nomad"
}

func (*recoverCommand) Help() string {
	return `Usage: orch registry recover [-dry-run] [-json]

  Have the leader compare every engine with what Vault and Nomad say of it, and
  rebuild what is missing in the registry, without waiting for it. It does so by
  itself when it notices that the registry went back in time. Changes of engines
  wait meanwhile; running engines can be admitted.

  -dry-run  change nothing: print what a recovery would do now, and why
  -json     print it as JSON
` + adminHelp
}

func (c *recoverCommand) Run(args []string) int {
	var dry, asJSON bool
	flags := func(f *flag.FlagSet) {
		f.BoolVar(&dry, "dry-run", false, "")
		f.BoolVar(&asJSON, "json", false, "")
	}
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		if !dry {
			if err := c.RecoverRegistry(ctx); err != nil {
				return err
			}
			if asJSON {
				return printJSON(map[string]string{"status": "requested"})
			}
			fmt.Println("requested")
			return nil
		}
		actions, err := c.PlanRecovery(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(map[string][]client.Action{"actions": actions})
		case len(actions) == 0:
			fmt.Println("nothing to do")
			return nil
		}
		return printActions(actions)
	})
}
