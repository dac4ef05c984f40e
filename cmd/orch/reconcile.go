package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/septemberai/orch/client"
)

type reconcileCommand struct{}

func (*reconcileCommand) Synopsis() string {
	return "Compare what there is with what should be, at once"
}

func (*reconcileCommand) Help() string {
	return `Usage: orch reconcile [-dry-run] [-json]

  Have the leader make a full reconcile pass at once, without waiting for it.

  -dry-run  change nothing: print what a pass would do now, and why
  -json     print it as JSON
` + adminHelp
}

func (c *reconcileCommand) Run(args []string) int {
	var dry, asJSON bool
	flags := func(f *flag.FlagSet) {
		f.BoolVar(&dry, "dry-run", false, "")
		f.BoolVar(&asJSON, "json", false, "")
	}
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		if !dry {
			if err := c.Reconcile(ctx); err != nil {
				return err
			}
			if asJSON {
				return printJSON(map[string]string{"status": "requested"})
			}
			fmt.Println("requested")
			return nil
		}
		plan, err := c.PlanReconcile(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(plan)
		}
		return printPlan(plan)
	})
}

func printPlan(plan *client.Plan) error {
	if len(plan.Incomplete) > 0 {
		fmt.Fprintf(os.Stderr, "These lists cannot be read now, and nothing is removed without them: %s\n", strings.Join(plan.Incomplete, ", "))
	}
	if len(plan.Actions) == 0 {
		fmt.Println("nothing to do")
		return nil
	}
	return printActions(plan.Actions)
}

func printActions(actions []client.Action) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ACTION\tSUBJECT\tENGINE\tPRODUCT\tUSER\tWHY")
	for _, a := range actions {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Action, a.Subject, dash(a.EngineID), dash(a.ProductID), dash(a.UserID), a.Why)
	}
	return w.Flush()
}

func dash(s string) string { return cmp.Or(s, "-") }
