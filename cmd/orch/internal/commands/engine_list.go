package commands

import (
	"context"
	"flag"
	"strings"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineList() *spec {
	var f client.FleetFilter
	var most int
	return &spec{
		name: "engine list", needs: needsEither, product: "only engines of this `product`, by slug or id (for the admin)",
		synopsis: "List the product's engines, or those of all products",
		about: `List engines, oldest first, without their keys: with a platform key the product's,
as the admin (-admin, or no platform key) those of all products, with their owner
and node. Warm engines have no user and are not listed. -product, -engine, -user,
-node and -reason are for the admin, and imply -admin. "orch engine list -engine"
with the name of a Nomad job shows whose engine it is.`,
		examples: []string{
			"orch engine list", "orch engine list -status failed", "orch engine list -json | jq -r '.engines[].user_id'",
			"orch engine list -admin", "orch engine list -product acme -status failed", "orch engine list -engine engine-kxojiu5ydmo2ndjwqkfmov3xjx",
		},
		flags: func(fs *flag.FlagSet) {
			fs.StringVar(&f.Status, "status", "", "only engines in this `state`")
			fs.IntVar(&most, "n", 0, "at most `n`; 0: all")
			fs.StringVar(&f.EngineID, "engine", "", "only the engine with this `engine_id`, or with this name of its Nomad job (for the admin)")
			fs.StringVar(&f.UserID, "user", "", "only engines of this `user_id` (for the admin)")
			fs.StringVar(&f.NodeID, "node", "", "only engines on the node with this `node_id` (for the admin)")
			fs.StringVar(&f.Reason, "reason", "", "only engines with this `reason`, such as crashed (for the admin)")
		},
		predict:      map[string]complete.Predictor{"status": complete.PredictSet(client.States...)},
		impliesAdmin: func() bool { return f.EngineID != "" || f.UserID != "" || f.NodeID != "" || f.Reason != "" },
		run: func(ctx context.Context, in *invocation) (err error) {
			if err := oneOf("-status", f.Status, client.States); err != nil {
				return err
			}
			if most < 0 {
				return cmdline.Wrong("-n must be 0 or more")
			}
			asAdmin := in.client.PlatformKey == ""
			var list *client.EngineList
			if asAdmin {
				f.EngineID = strings.TrimPrefix(f.EngineID, engine.JobPrefix)
				if f.ProductID, err = in.namedProduct(ctx); err != nil {
					return err
				}
				list, err = engines(most, func(limit int, cursor string) (*client.EngineList, error) {
					f.Limit, f.Cursor = limit, cursor
					return in.client.FleetEngines(ctx, f)
				})
			} else {
				list, err = engines(most, func(limit int, cursor string) (*client.EngineList, error) {
					return in.client.Engines(ctx, client.EngineFilter{Status: f.Status, Limit: limit, Cursor: cursor})
				})
			}
			if err != nil {
				return err
			}
			t := &cmdline.Table{Empty: "no engines"}
			if f.Status != "" {
				t.Empty = "no engines have status " + f.Status
			}
			if asAdmin {
				t.Head("PRODUCT", "USER", "ENGINE", "STATUS", "REASON", "NODE", "URL", "IMAGE", "CREATED", "HEALTHY AT")
			} else {
				t.Head("USER", "STATUS", "REASON", "URL", "IMAGE", "CREATED", "HEALTHY AT")
			}
			for _, e := range list.Engines {
				if asAdmin {
					t.Row(e.ProductSlug, e.UserID, e.EngineID, cmdline.State(e.Status), e.Reason, e.NodeID, e.URL, e.EngineVersion, e.CreatedAt, e.LastHealthAt)
				} else {
					t.Row(e.UserID, cmdline.State(e.Status), e.Reason, e.URL, e.EngineVersion, e.CreatedAt, e.LastHealthAt)
				}
			}
			if err := in.Show(list, t); err != nil {
				return err
			}
			if n := len(list.Engines); n < list.Total {
				in.Say("%d of %d engines", n, list.Total)
			}
			return nil
		},
	}
}

// engines reads pages until it has as many engines as requested, or all.
func engines(most int, page func(limit int, cursor string) (*client.EngineList, error)) (*client.EngineList, error) {
	const largest = 1000 // the maximum that the service returns
	all := &client.EngineList{Engines: []client.Engine{}}
	for cursor := ""; ; {
		limit := largest
		if most > 0 {
			limit = min(largest, most-len(all.Engines))
		}
		list, err := page(limit, cursor)
		if err != nil {
			return nil, err
		}
		all.Engines, all.Total = append(all.Engines, list.Engines...), list.Total
		if cursor = list.NextCursor; cursor == "" || len(all.Engines) == most {
			return all, nil
		}
	}
}
