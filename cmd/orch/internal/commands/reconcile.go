package commands

import (
	"context"
	"flag"
	"strings"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func reconcile() *spec {
	var dry bool
	return &spec{
		name: "reconcile", needs: needsAdminKey,
		synopsis: "Compare what exists with what should exist, now",
		about:    "Request a full reconcile pass of the leader, and do not wait for it.",
		examples: []string{"orch reconcile -dry-run", "orch reconcile"},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&dry, "dry-run", false, "change nothing: print what a pass would do now, and why")
		},
		run: func(ctx context.Context, in *invocation) error {
			if !dry {
				return in.requested(in.client.Reconcile(ctx))
			}
			plan, err := in.client.PlanReconcile(ctx)
			if err != nil {
				return err
			}
			if len(plan.Incomplete) > 0 {
				in.Say("These lists cannot be read now, and a pass removes nothing without them: %s", cmdline.Clean(strings.Join(plan.Incomplete, ", ")))
			}
			return in.Show(plan, actionTable(plan.Actions))
		},
	}
}

// requested shows the result of a request for background work.
func (in *invocation) requested(err error) error {
	if err != nil {
		return err
	}
	return in.ended("requested")
}

// ended shows the final status of a change, and facts about it.
func (in *invocation) ended(status string, facts ...[2]string) error {
	t := &cmdline.Table{}
	for _, f := range facts {
		t.Row(f[0], f[1])
	}
	t.Row("Status", status)
	return in.Show(map[string]string{"status": status}, t)
}

func actionTable(actions []client.Action) *cmdline.Table {
	t := &cmdline.Table{Empty: "nothing to do"}
	t.Head("ACTION", "SUBJECT", "ENGINE", "PRODUCT", "USER", "WHY")
	for _, a := range actions {
		t.Row(a.Action, a.Subject, a.EngineID, a.ProductID, a.UserID, a.Why)
	}
	return t
}
