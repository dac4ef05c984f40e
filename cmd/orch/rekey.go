package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
)

type rekeyCommand struct{}

func (*rekeyCommand) Synopsis() string {
	return "Give engines whose key Vault has lost a new one"
}

func (*rekeyCommand) Help() string {
	return `Usage: orch engine rekey [-json]

  Give running engines whose key Vault has lost a new one, a few at a time, until
  all have one. They keep their process and their address; products get the new
  keys when they admit their users. Engines that do not run get a new key with their
  next start. Engines that do not take their new key are exit code 1; the same
  command tries again.

  -json  print how many as JSON
` + adminHelp
}

func (c *rekeyCommand) Run(args []string) int {
	var asJSON bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		total, err := rekeyAll(func() (*client.Rekeyed, error) { return c.Rekey(ctx) })
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(total)
		} else {
			fmt.Printf("%d rekeyed, %d at their next start, %d failed, %d left\n", total.Rekeyed, total.AtStart, total.Failed, total.Left)
		}
		if err == nil && total.Failed+total.Left > 0 {
			err = errors.New("not every running engine has a new key; try again")
		}
		return err
	})
}

// rekeyAll makes call after call until none are left or nothing moves. Each call
// counts anew what is not done yet, so only the re-keyed ones add up.
func rekeyAll(call func() (*client.Rekeyed, error)) (*client.Rekeyed, error) {
	total := &client.Rekeyed{}
	for before := -1; ; before = total.Left {
		r, err := call()
		if err != nil {
			return nil, fmt.Errorf("%d engines have a new key, and then: %w", total.Rekeyed, err)
		}
		total.Rekeyed += r.Rekeyed
		total.AtStart, total.Failed, total.Left = r.AtStart, r.Failed, r.Left
		if r.Left == 0 || r.Rekeyed == 0 && before >= 0 && r.Left >= before {
			return total, nil
		}
	}
}
