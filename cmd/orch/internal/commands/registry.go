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
they are not. A registry that went back in time is recovered without a command. If
Vault has lost keys, "orch engine rekey" gives engines new ones.`,
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
		about: `Request that the leader compares every engine with the records in Vault and Nomad,
and rebuilds what the registry has lost; do not wait for it. The service does so
without a command when it notices that the registry went back in time. Changes of
engines wait meanwhile; users of running engines can be admitted.`,
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
