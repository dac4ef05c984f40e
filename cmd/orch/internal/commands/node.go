package commands

import (
	"context"
	"errors"
	"flag"

	"github.com/septemberai/orch/internal/cmdline"
)

func nodeAdopt() *spec {
	var ended bool
	return &spec{
		name: "node adopt", args: []string{"old_node_id", "new_node_id"}, needs: needsAdminKey,
		synopsis: "Give the engines of a node their volumes again, after Nomad lost its state",
		about: `Register the data of engines as volumes again that Nomad has lost, on the node where
it is. When Nomad's servers lost their state, both ids are those of the same node;
restart its Nomad agent first. When the node's agent lost its state, the node has a
new id, and the old id is the one before. Old processes of these engines are ended
on the node before anything is started there. The command may be repeated. The ids
are those that "nomad node status -verbose" shows.`,
		examples: []string{
			"orch node adopt 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a",
		},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&ended, "processes-ended", false, "do not look for old processes: the node was rebooted, or its engines' containers were ended")
		},
		run: func(ctx context.Context, in *invocation) error {
			done, err := in.client.AdoptNode(ctx, in.Args[0], in.Args[1], ended)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Adopted", done.Adopted)
			t.Row("Destroyed ones whose data was removed", done.Cleared)
			for _, f := range done.Failed {
				t.Row("Not adopted: "+f.EngineID, f.Why)
			}
			if done.Left > 0 {
				t.Row("Left, for another call", done.Left)
			}
			if err := in.Show(done, t); err != nil || len(done.Failed) == 0 {
				return err
			}
			return errors.New("some engines were not adopted")
		},
	}
}
