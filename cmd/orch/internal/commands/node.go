package commands

import (
	"context"
	"errors"
	"flag"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func nodeList() *spec {
	return &spec{
		name: "node list", needs: needsAdminKey,
		synopsis: "List the nodes, with their engines, room and health",
		about: `List every node that Nomad knows, and last those that it does not know but on which
engines are recorded (status unknown). ENGINES counts users' engines, whether they
run or not, and RUNNING those that run; WARM counts engines without a user. FREE
is what no allocation has reserved. VOLUMES counts empty volumes that wait for an
engine. CONSUL is the node's Consul agent: ok, failing, or unknown. "orch engine
list -node" lists the engines of a node.`,
		examples: []string{"orch node list", "orch node list -json | jq '.nodes[] | select(.consul_agent != \"ok\")'"},
		run: func(ctx context.Context, in *invocation) error {
			list, err := in.client.Nodes(ctx)
			if err != nil {
				return err
			}
			t := &cmdline.Table{Empty: "no nodes"}
			t.Head("NODE", "NAME", "POOL", "STATUS", "ELIGIBLE", "ENGINES", "RUNNING", "FAILED", "WARM", "VOLUMES", "FREE MHZ", "FREE MIB", "CONSUL")
			for _, n := range list.Nodes {
				engines := 0
				for _, count := range n.Engines {
					engines += count
				}
				t.Row(n.NodeID, n.Name, n.NodePool, n.Status, n.Eligible, engines, n.Engines[client.Running], n.Engines[client.Failed], n.WarmEngines, n.ReadyVolumes,
					n.Room.CPUMHz, n.Room.MemoryMB, n.ConsulAgent)
			}
			return in.Show(list, t)
		},
	}
}

func nodeAdopt() *spec {
	var ended bool
	return &spec{
		name: "node adopt", args: []string{"old_node_id", "new_node_id"}, needs: needsAdminKey,
		synopsis: "Give a node's engines their volumes back after Nomad lost its state",
		about: `Register the data of engines as volumes again after Nomad has lost these, on the
node where the data is. If Nomad's servers lost their state, both ids are the same;
restart the node's Nomad agent first. If the node's agent lost its state, give the
node's old and its new id. Old processes of these engines on the node are ended
before an engine is started there. The command may be repeated. "nomad node status
-verbose" shows the ids.`,
		examples: []string{
			"orch node adopt 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a 0e5ab8c4-7c7a-2f0e-6d2b-6f6c1d4f6f0a",
		},
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&ended, "processes-ended", false, "do not search for old processes, because the node was rebooted or its engines' containers were ended")
		},
		run: func(ctx context.Context, in *invocation) error {
			done, err := in.client.AdoptNode(ctx, in.Args[0], in.Args[1], ended)
			if err != nil {
				return err
			}
			t := &cmdline.Table{}
			t.Row("Adopted", done.Adopted)
			t.Row("Destroyed engines whose data was removed", done.Cleared)
			for _, f := range done.Failed {
				t.Row("Not adopted: "+f.EngineID, f.Why)
			}
			if done.Left > 0 {
				t.Row("Left for the next call", done.Left)
			}
			if err := in.Show(done, t); err != nil || len(done.Failed) == 0 {
				return err
			}
			return errors.New("some engines were not adopted")
		},
	}
}
