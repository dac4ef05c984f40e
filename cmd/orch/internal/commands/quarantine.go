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
		name: "engine quarantine", needs: needsAdminKey, product: "only those of one `product`, by slug or id",
		synopsis: "List the engines that only the admin can decide about (for the admin)",
		about: `List the quarantined engines, oldest first. What is known of such an engine
contradicts itself, or does not name its owner. Nobody gets its key, and nothing
removes it, until "orch engine adopt" or "orch engine discard" does.`,
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
		name: "engine adopt", args: []string{"engine_id"}, needs: needsAdminKey, product: "the `product` that the engine becomes one of, by slug or id",
		synopsis: "Give a quarantined engine to a user (for the admin)",
		about: `Give a quarantined engine to the user whom Vault and Nomad name, or, where they name
none, to the one that -product and -user name. The brain is untouched; the product
gets the engine's key when it admits the user.`,
		examples: []string{"orch engine adopt kxojiu5ydmo2ndjwqkfmov3xjx", "orch engine adopt -product acme -user alice@example.com kxojiu5ydmo2ndjwqkfmov3xjx"},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&user, "user", "", "the `user_id` of the user who gets it")
		},
		run: func(ctx context.Context, in *invocation) error {
			if (in.product == "") != (user == "") {
				return cmdline.Wrong("-product and -user name the owner together: give both or neither")
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
		synopsis: "Remove a quarantined engine with its brain and key (for the admin)",
		about:    "Remove a quarantined engine: its process, job, volume, variable and key. It cannot\nbe undone.",
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
