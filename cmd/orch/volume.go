package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/septemberai/orch/client"
)

type volumeListCommand struct{}

func (*volumeListCommand) Synopsis() string {
	return "List the volumes that destroyed engines left on their nodes"
}

func (*volumeListCommand) Help() string {
	return `Usage: orch volume list [-json]

  List the unreachable volumes, oldest first: those of destroyed engines that
  could not be deleted, with what keeps each on its node. The service deletes a
  volume on a silent node when the node is back.

  -json  print them as JSON
` + adminHelp
}

func (c *volumeListCommand) Run(args []string) int {
	var asJSON bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") }
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.UnreachableVolumes(ctx)
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(list)
		case len(list.UnreachableVolumes) == 0:
			fmt.Println("no volume is unreachable")
			return nil
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "ENGINE\tSINCE\tPRODUCT\tUSER\tNODE\tVOLUME\tPATH\tWHY")
		for _, v := range list.UnreachableVolumes {
			since := ""
			if v.Since != nil {
				since = moment(*v.Since)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
				v.EngineID, dash(since), dash(v.ProductID), dash(v.UserID), dash(v.NodeID), v.VolumeID, dash(v.VolumePath), dash(v.Why))
		}
		return w.Flush()
	})
}

type volumeForgetCommand struct{}

func (*volumeForgetCommand) Synopsis() string {
	return "Forget the volume of a destroyed engine whose node is lost"
}

func (*volumeForgetCommand) Help() string {
	return `Usage: orch volume forget ENGINE_ID [-yes]

  Forget the unreachable volume of a destroyed engine: its node was silent when
  the engine was destroyed and will not come back, or you have removed the
  directory. Should the node come back after all, a volume that Nomad knows is
  removed as an orphan. "orch volume list" lists the unreachable volumes.

  -yes  do not ask
` + adminHelp
}

func (c *volumeForgetCommand) Run(args []string) int {
	var yes bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&yes, "yes", false, "") }
	return adminCommand(c.Help(), args, 1, flags, func(ctx context.Context, c *client.Client, args []string) error {
		if !yes && !confirmed(fmt.Sprintf("Forget the volume of engine %s for good?", args[0])) {
			return errors.New("not confirmed; nothing was done")
		}
		if err := c.ForgetVolume(ctx, args[0]); err != nil {
			return err
		}
		fmt.Println("forgot " + args[0])
		return nil
	})
}
