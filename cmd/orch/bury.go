package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
)

type buryCommand struct{}

func (*buryCommand) Synopsis() string { return "Forget a destroyed engine whose node is lost" }

func (*buryCommand) Help() string {
	return `Usage: orch engine bury ENGINE_ID [-yes]

  Forget the grave of a destroyed engine: its data is on a node that was silent
  when the engine was destroyed, and that will not come back, or you have removed
  the directory. Should the node come back after all, a volume that Nomad knows is
  removed as an orphan. The admin's GET /graves lists the graves.

  -yes  do not ask
` + adminHelp
}

func (c *buryCommand) Run(args []string) int {
	var yes bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&yes, "yes", false, "") }
	return adminCommand(c.Help(), args, 1, flags, func(ctx context.Context, c *client.Client, args []string) error {
		if !yes && !confirmed(fmt.Sprintf("Forget the volume of engine %s for good?", args[0])) {
			return errors.New("not confirmed; nothing was done")
		}
		if err := c.Bury(ctx, args[0]); err != nil {
			return err
		}
		fmt.Println("buried " + args[0])
		return nil
	})
}
