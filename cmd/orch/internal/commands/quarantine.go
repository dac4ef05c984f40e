package commands

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineQuarantine() *spec {
	return &spec{
		name: "engine quarantine", needs: needsAdminKey, product: "only engines of this `product`, by slug or id",
		synopsis: "List engines whose owner the admin must decide (for the admin)",
		about: `List the quarantined engines, oldest first. The records of such an engine
contradict each other, or name no owner. Nobody gets its key, and nothing removes
it, until "orch engine adopt" or "orch engine discard".`,
		examples: []string{"orch engine quarantine"},
		run: func(ctx context.Context, in *invocation) error {
			list, err := in.client.Quarantine(ctx)
			if err != nil {
				return err
			}
			if list.Engines, err = ofProduct(ctx, in, list.Engines, func(q client.Quarantined) string { return q.ProductID }); err != nil {
				return err
			}
			if in.product != "" {
				list.Total = len(list.Engines)
			}
			t := &cmdline.Table{Empty: "no engine is quarantined"}
			t.Head("ENGINE", "SINCE", "PRODUCT", "USER", "NODE", "WHAT", "WHY")
			for _, q := range list.Engines {
				t.Row(q.EngineID, q.Since, q.ProductID, q.UserID, q.NodeID, strings.Join(q.What, ", "), q.Why)
			}
			return in.Show(list, t)
		},
	}
}

func engineAdopt() *spec {
	var user string
	return &spec{
		name: "engine adopt", args: []string{"engine_id"}, needs: needsAdminKey, product: "the `product` of the new owner, by slug or id",
		synopsis: "Give a quarantined engine to a user (for the admin)",
		about: `Give a quarantined engine to the user that Vault and Nomad name, or, if they name
none, to the user that -product and -user name. The brain is not changed; the
product gets the engine's key when it admits the user.`,
		examples: []string{"orch engine adopt kxojiu5ydmo2ndjwqkfmov3xjx", "orch engine adopt -product acme -user alice@example.com kxojiu5ydmo2ndjwqkfmov3xjx"},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&user, "user", "", "the `user_id` of the new owner")
		},
		run: func(ctx context.Context, in *invocation) error {
			if (in.product == "") != (user == "") {
				return cmdline.Wrong("give both -product and -user, or neither")
			}
			product, err := in.namedProduct(ctx)
			if err != nil {
				return err
			}
			e, err := in.client.Adopt(ctx, in.Args[0], product, user)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Product", e.ProductID)
			t.Append(describeEngine(e, false))
			return in.Show(e, t)
		},
	}
}

func engineDiscard() *spec {
	return &spec{
		name: "engine discard", args: []string{"engine_id"}, needs: needsAdminKey,
		synopsis: "Remove a quarantined engine, with its brain and key (for the admin)",
		about:    "Remove a quarantined engine: its process, job, volume, variable and key. This\ncannot be undone.",
		examples: []string{"orch engine discard kxojiu5ydmo2ndjwqkfmov3xjx"},
		ask: func(args []string) string {
			return fmt.Sprintf("Remove engine %s with its brain and key?", args[0])
		},
		run: func(ctx context.Context, in *invocation) error {
			if err := in.client.Discard(ctx, in.Args[0]); err != nil {
				return err
			}
			return in.ended("discarded", [2]string{"Engine", in.Args[0]})
		},
	}
}
