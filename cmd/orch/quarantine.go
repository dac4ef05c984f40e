package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/septemberai/orch/client"
)

type quarantineCommand struct{}

func (*quarantineCommand) Synopsis() string {
	return "List the engines that only the admin can decide about"
}

func (*quarantineCommand) Help() string {
	return `Usage: orch engine quarantine [-json]

  List the quarantined engines, oldest first. What is known of such an engine
  contradicts itself, or does not say whose it is. It is given to nobody, and
  nothing removes it, until "orch engine adopt" or "orch engine discard" does.

  -json  print them as JSON
` + adminHelp
}

func (c *quarantineCommand) Run(args []string) int {
	var asJSON bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.Quarantine(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(list)
		case len(list.Engines) == 0:
			fmt.Println("no engine is quarantined")
			return nil
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "ENGINE\tSINCE\tPRODUCT\tUSER\tNODE\tWHAT\tWHY")
		for _, q := range list.Engines {
			since := ""
			if q.Since != nil {
				since = moment(*q.Since)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
				q.EngineID, dash(since), dash(q.ProductID), dash(q.UserID), dash(q.NodeID), dash(strings.Join(q.What, ", ")), q.Why)
		}
		return w.Flush()
	})
}

type adoptCommand struct{}

func (*adoptCommand) Synopsis() string { return "Give a quarantined engine to a user" }

func (*adoptCommand) Help() string {
	return `Usage: orch engine adopt ENGINE_ID [-product PRODUCT_ID -user USER_ID]

  Give a quarantined engine to the user whom Vault and Nomad name. Where they name
  none, -product and -user do. What the engine holds is untouched; the product gets
  its key when it admits the user.

  -product  the product_id of the product that it becomes an engine of
  -user     the user_id of the user whose it becomes
` + adminHelp
}

func (c *adoptCommand) Run(args []string) int {
	var product, user string
	flags := func(f *flag.FlagSet) {
		f.StringVar(&product, "product", "", "")
		f.StringVar(&user, "user", "", "")
	}
	return adminCommand(c.Help(), args, 1, flags, func(ctx context.Context, c *client.Client, args []string) error {
		if (product == "") != (user == "") {
			return wrongCall("-product and -user name the owner together: give both or neither")
		}
		e, err := c.Adopt(ctx, args[0], product, user)
		if err != nil {
			return err
		}
		fmt.Printf("adopted %s: user %q of product %s, %s\n", e.EngineID, e.UserID, e.ProductID, e.Status)
		return nil
	})
}

type discardCommand struct{}

func (*discardCommand) Synopsis() string { return "Remove a quarantined engine with its brain and key" }

func (*discardCommand) Help() string {
	return `Usage: orch engine discard ENGINE_ID [-yes]

  Remove a quarantined engine for good: its process, job, volume, variable and key.
  It cannot be undone.

  -yes  do not ask
` + adminHelp
}

func (c *discardCommand) Run(args []string) int {
	var yes bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&yes, "yes", false, "") }
	return adminCommand(c.Help(), args, 1, flags, func(ctx context.Context, c *client.Client, args []string) error {
		if !yes && !confirmed(fmt.Sprintf("Remove engine %s with its brain and key for good?", args[0])) {
			return errors.New("not confirmed; nothing was done")
		}
		if err := c.Discard(ctx, args[0]); err != nil {
			return err
		}
		fmt.Println("discarded " + args[0])
		return nil
	})
}
