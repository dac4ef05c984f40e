package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
)

type nodeAdoptCommand struct{}

func (*nodeAdoptCommand) Synopsis() string {
	return "Give the engines of a node their volumes again, after Nomad lost its state"
}

func (*nodeAdoptCommand) Help() string {
	return `Usage: orch node adopt OLD_NODE_ID NEW_NODE_ID [-processes-ended] [-json]

  Register the data of engines as volumes again that Nomad has lost, on the node
  where it is. When Nomad's servers lost their state, OLD and NEW are the same node;
  restart its Nomad agent first. When the node's agent lost its state, the node has a
  new id: OLD is the id before. Old processes of these engines are ended on the node
  before anything is started there. It may be called again. The ids are those that
  "nomad node status -verbose" shows.

  -processes-ended  the node was rebooted, or the engines' containers on it were
                    ended: do not look for old processes
  -json             print what was done as JSON
` + adminHelp
}

func (c *nodeAdoptCommand) Run(args []string) int {
	var ended, asJSON bool
	flags := func(f *flag.FlagSet) {
		f.BoolVar(&ended, "processes-ended", false, "")
		f.BoolVar(&asJSON, "json", false, "")
	}
	return adminCommand(c.Help(), args, 2, flags, func(ctx context.Context, c *client.Client, args []string) error {
		done, err := c.AdoptNode(ctx, args[0], args[1], ended)
		if err != nil {
			return err
		}
		if asJSON {
			if err := printJSON(done); err != nil {
				return err
			}
		} else {
			fmt.Printf("adopted %d engines; removed the data of %d destroyed ones\n", done.Adopted, done.Cleared)
			for _, f := range done.Failed {
				fmt.Printf("not adopted: %s: %s\n", f.EngineID, f.Why)
			}
			if done.Left > 0 {
				fmt.Printf("%d engines are left: run it again\n", done.Left)
			}
		}
		if len(done.Failed) > 0 {
			return errors.New("some engines were not adopted")
		}
		return nil
	})
}
