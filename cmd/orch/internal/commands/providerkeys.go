package commands

import (
	"context"
	"errors"
	"flag"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func rolloutTable(r *client.Rollout) *cmdline.Table {
	t := &cmdline.Table{}
	t.Row("Status", cmdline.State(r.Status))
	t.Row("Version", r.TargetVersion)
	t.Row("Pending", r.Pending)
	t.Row("Restarted", r.Restarted)
	t.Row("Failed", r.Failed)
	return t
}

func providerKeysStatus() *spec {
	return &spec{
		name: "provider-keys status", needs: needsAdminKey,
		synopsis: "Show the progress of a rollout of provider keys",
		about: `Show the progress of the last rollout of provider keys: none, rolling, halted (too
many engines in a row did not become healthy) or done.`,
		examples: []string{"orch provider-keys status", "orch provider-keys status -json | jq .pending"},
		run: func(ctx context.Context, in *invocation) error {
			r, err := in.client.ProviderKeys(ctx)
			if err != nil {
				return err
			}
			return in.Show(r, rolloutTable(r))
		},
	}
}

// rolloutPoll is the interval at which -wait reads the progress of a rollout.
const rolloutPoll = time.Second

func providerKeysApply() *spec {
	var wait bool
	return &spec{
		name: "provider-keys apply", needs: needsAdminKey,
		synopsis: "Give running engines the new provider keys, a few concurrently",
		about: `Make the service restart the running engines whose provider keys are older than
those in Vault: 2 % of them concurrently, and at least one, and the next ones only
after those are healthy. Engines that sleep or are stopped get the keys when they
start. If several in a row do not become healthy, the rollout halts; the same
command resumes it.`,
		examples: []string{"orch provider-keys apply", "orch provider-keys apply -wait"},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&wait, "wait", false, "wait for the end; the exit code is 1 if the rollout halted or engines failed")
		},
		run: func(ctx context.Context, in *invocation) error {
			r, err := in.client.ApplyProviderKeys(ctx)
			if err == nil && wait {
				r, err = cmdline.Wait(ctx, in.Call, "restarting engines", func(ctx context.Context) (*client.Rollout, error) {
					return rolled(ctx, in.client, r)
				})
			}
			if err != nil {
				return err
			}
			if err := in.Show(r, rolloutTable(r)); err != nil {
				return err
			}
			if wait && (r.Status == "halted" || r.Failed > 0) {
				return errors.New("not every engine has the new provider keys")
			}
			return nil
		},
	}
}

// rolled waits for the end of a rollout.
func rolled(ctx context.Context, c *client.Client, r *client.Rollout) (*client.Rollout, error) {
	tick := time.NewTicker(rolloutPoll)
	defer tick.Stop()
	for r.Status == "rolling" {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		var err error
		if r, err = c.ProviderKeys(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}
