package commands

import (
	"context"
	"flag"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func engineList() *spec {
	var state string
	var most int
	return &spec{
		name: "engine list", needs: needsPlatformKey,
		synopsis: "List the product's engines",
		about:    "List the product's engines, oldest first, without their keys.",
		examples: []string{"orch engine list", "orch engine list -status failed", "orch engine list -json | jq -r '.engines[].user_id'"},
		flags: func(f *flag.FlagSet) {
			f.StringVar(&state, "status", "", "only engines in this `state`")
			f.IntVar(&most, "n", 0, "at most `n`; 0: all")
		},
		predict: map[string]complete.Predictor{"status": complete.PredictSet(client.States...)},
		run: func(ctx context.Context, in *invocation) error {
			if err := oneOf("-status", state, client.States); err != nil {
				return err
			}
			if most < 0 {
				return cmdline.Wrong("-n must be 0 or more")
			}
			list, err := engines(ctx, in.client, client.EngineFilter{Status: state}, most)
			if err != nil {
				return err
			}
			t := &cmdline.Table{Empty: "no engines"}
			if state != "" {
				t.Empty = "no engines have status " + state
			}
			t.Head("USER", "STATUS", "REASON", "URL", "IMAGE", "CREATED", "HEALTHY AT")
			for _, e := range list.Engines {
				t.Row(e.UserID, cmdline.State(e.Status), e.Reason, e.URL, e.EngineVersion, e.CreatedAt, e.LastHealthAt)
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
func engines(ctx context.Context, c *client.Client, f client.EngineFilter, most int) (*client.EngineList, error) {
	const page = 1000 // the maximum that the service returns
	all := &client.EngineList{Engines: []client.Engine{}}
	for {
		f.Limit = page
		if most > 0 {
			f.Limit = min(page, most-len(all.Engines))
		}
		list, err := c.Engines(ctx, f)
		if err != nil {
			return nil, err
		}
		all.Engines, all.Total = append(all.Engines, list.Engines...), list.Total
		if f.Cursor = list.NextCursor; f.Cursor == "" || len(all.Engines) == most {
			return all, nil
		}
	}
}
