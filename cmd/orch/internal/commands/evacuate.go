package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func nodeEvacuate() *spec {
	var begin, status, cancel bool
	return &spec{
		name: "node evacuate", args: []string{"node_id"}, needs: needsAdminKey,
		synopsis: "Move all engines of a node to other nodes",
		about: `Move all engines of a node to other nodes, before work on it, and show the progress
until none is left. Each engine keeps its key, and is down only while its brain is
copied. Sleeping and stopped engines are moved first; an engine that reports that it
is busy is left for up to ten minutes. Nomad places nothing on the node afterwards:
"nomad node eligibility -enable" gives it back. The evacuation goes on if this
command is interrupted. The same command then shows it again, and engines whose move
failed are tried again at once. It exits with 1 if engines are left.`,
		examples: []string{
			"orch node evacuate 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a",
			"orch node evacuate -status -json 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a | jq '.failed[]'",
		},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&begin, "no-wait", false, "begin, and do not wait for the end")
			f.BoolVar(&status, "status", false, "only show the node's last evacuation")
			f.BoolVar(&cancel, "cancel", false, "end the evacuation: engines that were stopped for their move still arrive, the others stay")
		},
		run: func(ctx context.Context, in *invocation) error {
			act := in.client.Evacuate
			switch {
			case begin && (status || cancel), status && cancel:
				return cmdline.Wrong("-no-wait, -status and -cancel exclude each other")
			case status:
				act = in.client.Evacuation
			case cancel:
				act = in.client.CancelEvacuation
			}
			e, err := act(ctx, in.Args[0])
			if err != nil {
				return err
			}
			if begin || status || cancel {
				return in.Show(e, describeEvacuation(e))
			}
			if e, err = in.followEvacuation(ctx, e); err != nil {
				return err
			}
			if err := in.Show(e, describeEvacuation(e)); err != nil || e.Status == "done" {
				return err
			}
			return errors.New("engines are left on the node")
		},
	}
}

// followEvacuation prints the progress of an evacuation until it ends.
func (in *invocation) followEvacuation(ctx context.Context, e *client.Evacuation) (*client.Evacuation, error) {
	last := ""
	show := func() {
		line := fmt.Sprintf("%d of %d engines left, %d moving, %d failed", e.Left, max(e.Total, e.Left), e.Moving, len(e.Failed))
		if e.Waits != "" {
			line += "; waiting: " + cmdline.Clean(e.Waits)
		}
		if line != last {
			_, _ = fmt.Fprintf(in.Env.Err, "orch node evacuate: %s\n", line)
		}
		last = line
	}
	show()
	err := in.poll(ctx, "node evacuate", func(ctx context.Context) (bool, error) {
		now, err := in.client.Evacuation(ctx, in.Args[0])
		if err != nil {
			return false, err
		}
		e = now
		if !e.Ended() {
			show()
		}
		return e.Ended(), nil
	})
	return e, err
}

// describeEvacuation shows an evacuation as a table.
func describeEvacuation(e *client.Evacuation) *cmdline.Table {
	t := &cmdline.Table{}
	t.Fact("Node", e.NodeID)
	t.Fact("Status", e.Status)
	t.Fact("Requested", e.RequestedAt+" by a "+e.RequestedBy)
	if e.EndedAt != nil {
		t.Fact("Ended", *e.EndedAt)
	}
	t.Row("Engines at the beginning", e.Total)
	t.Row("Engines left", e.Left)
	t.Row("On their way", e.Moving)
	t.Fact("Waits", e.Waits)
	for _, f := range e.Failed {
		t.Row("Failed: "+f.EngineID, fmt.Sprintf("%s (%s, %d attempts): %s", f.UserID, f.Code, f.Attempts, f.Message))
	}
	return t
}
