package commands

import (
	"context"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func registryStatus() *spec {
	return &spec{
		name: "registry status", needs: needsAdminKey,
		synopsis: "Show the state of the registry",
		about: `Show whether the registry (Consul) and the keys (Vault) are complete, or since when
they are not. A registry that went back in time is recovered without a command;
"orch engine rekey" gives engines new keys for those that Vault has lost.`,
		examples: []string{"orch registry status"},
		run: func(ctx context.Context, in *invocation) error {
			r, err := in.client.Registry(ctx)
			if err != nil {
				return err
			}
			return in.Show(r, registryTable(r))
		},
	}
}

func registryTable(r *client.RegistryStatus) *cmdline.Table {
	t := &cmdline.Table{}
	t.Row("Registry", cmdline.State(r.State))
	if r.Why != "" {
		t.Row("  why", r.Why)
		t.Row("  since", r.Since)
	}
	t.Row("Keys", cmdline.State(r.Keys))
	t.Fact("  since", r.KeysLostSince)
	t.Row("Keys missing", r.KeysMissing)
	t.Row("Quarantined", r.Quarantined)
	t.Row("Deployment", r.DeploymentID)
	t.Row("Registry id", r.RegistryID)
	t.Row("Epoch", r.Epoch)
	if l := r.LastRecovery; l != nil {
		t.Row("Last recovery", l.Why)
		t.Row("  began", l.BeganAt)
		t.Row("  ended", l.EndedAt)
		t.Row("  engines", fmt.Sprintf("%d rebuilt, %d corrected, %d whose brain is missing", l.Rebuilt, l.Corrected, l.Missing))
		t.Row("  products", l.Products)
		t.Row("  pooled volumes", fmt.Sprintf("%d forgotten", l.Pooled))
	}
	return t
}

func registryRecover() *spec {
	var dry bool
	return &spec{
		name: "registry recover", needs: needsAdminKey,
		synopsis: "Rebuild what the registry has lost, from Vault and Nomad",
		about: `Ask the leader to compare every engine with what Vault and Nomad know about it, and
to rebuild what is missing in the registry. It is not waited for. The service does
so without a command when it notices that the registry went back in time. Changes
of engines wait meanwhile; running engines can be admitted.`,
		examples: []string{"orch registry recover -dry-run", "orch registry recover"},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&dry, "dry-run", false, "change nothing: print what a recovery would do now, and why")
		},
		run: func(ctx context.Context, in *invocation) error {
			if !dry {
				return in.requested(in.client.RecoverRegistry(ctx))
			}
			actions, err := in.client.PlanRecovery(ctx)
			if err != nil {
				return err
			}
			return in.Show(map[string][]client.Action{"actions": actions}, actionTable(actions))
		},
	}
}
