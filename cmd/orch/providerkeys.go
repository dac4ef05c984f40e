package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
)

type providerKeysCommand struct{}

func (*providerKeysCommand) Synopsis() string {
	return "Bring new provider keys to running engines, a few at a time"
}

func (*providerKeysCommand) Help() string {
	return `Usage: orch provider-keys apply [-wait] [-json]

  Have the service restart the running engines whose provider keys are older than
  those in Vault: two in a hundred at a time, and at least one, each of them healthy
  before the next. Engines that sleep or are stopped get the keys when they start.
  When several in a row do not come back the rollout halts; the same command goes
  on.

  -wait  wait until it is over; halted, or engines that failed, are exit code 1
  -json  print how far it is as JSON
` + adminHelp
}

// rolloutPoll is how often a rollout is looked at.
const rolloutPoll = time.Second

func (c *providerKeysCommand) Run(args []string) int {
	var wait, asJSON bool
	flags := func(f *flag.FlagSet) {
		f.BoolVar(&wait, "wait", false, "")
		f.BoolVar(&asJSON, "json", false, "")
	}
	return adminCommand(c.Help(), args, 0, flags, func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.ApplyProviderKeys(ctx)
		for err == nil && wait && r.Status == "rolling" {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rolloutPoll):
			}
			r, err = c.ProviderKeys(ctx)
		}
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(r)
		} else {
			fmt.Printf("%s: version %d, %d pending, %d restarted, %d failed\n", r.Status, r.TargetVersion, r.Pending, r.Restarted, r.Failed)
		}
		if wait && (r.Status == "halted" || r.Failed > 0) {
			err = errors.New("not every engine has the new provider keys")
		}
		return err
	})
}
