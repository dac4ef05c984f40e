package commands

import (
	"context"
	"errors"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineRekey() *spec {
	return &spec{
		name: "engine rekey", needs: needsAdminKey,
		synopsis: "Give new keys to engines whose key Vault has lost (for the admin)",
		about: `Give new keys to running engines whose key Vault has lost, a few concurrently, until
all have one. They keep their process and their address; products get the new keys
when they admit their users. Engines that do not run get a new key at their next
start. If an engine does not accept its new key, the exit code is 1; repeat the
command to retry.`,
		examples: []string{"orch engine rekey"},
		run: func(ctx context.Context, in *invocation) error {
			total, err := cmdline.Wait(ctx, in.Call, "giving engines new keys", func(ctx context.Context) (*client.Rekeyed, error) {
				return rekeyAll(func() (*client.Rekeyed, error) { return in.client.Rekey(ctx) })
			})
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Rekeyed", total.Rekeyed)
			t.Row("At their next start", total.AtStart)
			t.Row("Failed", total.Failed)
			t.Row("Left", total.Left)
			err = in.Show(total, t)
			if err == nil && total.Failed+total.Left > 0 {
				err = errors.New("not every running engine has a new key; repeat the command to retry")
			}
			return err
		},
	}
}

// rekeyAll calls until no engines are left or a call makes no progress. Each call counts
// the remaining engines again, so only the re-keyed ones are added up.
func rekeyAll(call func() (*client.Rekeyed, error)) (*client.Rekeyed, error) {
	total := &client.Rekeyed{}
	for before := -1; ; before = total.Left {
		r, err := call()
		if err != nil {
			return nil, fmt.Errorf("after %d engines got a new key: %w", total.Rekeyed, err)
		}
		total.Rekeyed += r.Rekeyed
		total.AtStart, total.Failed, total.Left = r.AtStart, r.Failed, r.Left
		if r.Left == 0 || r.Rekeyed == 0 && before >= 0 && r.Left >= before {
			return total, nil
		}
	}
}
