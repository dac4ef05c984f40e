package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// AgentState is the state of the Consul agent of a node.
type AgentState string

// The values of AgentState.
const (
	AgentOK      AgentState = "ok"
	AgentFailing AgentState = "failing" // Consul's servers do not hear from it, so nobody runs the checks of its engines
	// AgentUnknown: the node names no agent, or Consul does not list the agent. It may have
	// left, or the service's token may not read it.
	AgentUnknown AgentState = "unknown"
)

// NodeStatus is a node with what the service has there.
type NodeStatus struct {
	// Node is empty except for its ID if Nomad does not know the node, although engines are
	// recorded there.
	cluster.Node
	// Engines counts the engines of users, by all six states; WarmEngines those without a
	// user.
	Engines     map[engine.State]int
	WarmEngines int
	// ReadyVolumes counts the empty volumes that wait for an engine.
	ReadyVolumes int
	ConsulAgent  AgentState
}

// Nodes returns every node that Nomad knows or that engines are recorded on, by name, and how
// long ago the view of engines was known to be complete. BACKEND_UNAVAILABLE: the views of
// engines or nodes are not filled yet, or too old; or Consul does not respond.
func (s *Scheduler) Nodes(ctx context.Context) ([]NodeStatus, time.Duration, error) {
	age, err := s.viewAge()
	if err != nil {
		return nil, 0, err
	}
	select {
	case <-s.cluster.Synced():
	default:
		return nil, 0, lagging("this replica has not read the nodes yet", errors.New("the view of nodes is not filled"))
	}
	if s.cluster.Age() > staleView {
		return nil, 0, lagging("this replica does not hear from Nomad", errors.New("the view of nodes is too old"))
	}
	volumes, _, err := s.store.PooledVolumes(ctx)
	if err != nil {
		return nil, 0, err
	}
	agents, err := s.store.Agents(ctx)
	if err != nil {
		return nil, 0, err
	}
	nodes := nodesWith(s.cluster.Nodes(), s.mirror.ByNode(), volumes)
	names := s.consulAgents(ctx, nodes, agents)
	for i := range nodes {
		nodes[i].ConsulAgent = agentState(names[i], agents)
	}
	return nodes, age, nil
}

// nodesWith combines nodes with the counts of what is recorded on them, sorted by name and
// id. Nodes that Nomad does not know are last.
func nodesWith(known []cluster.Node, counts map[string]registry.NodeCounts, volumes []*registry.PooledVolume) []NodeStatus {
	ready, all := map[string]int{}, make([]NodeStatus, 0, len(known))
	for _, v := range volumes {
		if v.Ready() {
			ready[v.NodeID]++
		}
	}
	add := func(n cluster.Node) {
		at := counts[n.ID]
		status := NodeStatus{Node: n, Engines: make(map[engine.State]int, len(engine.States)), WarmEngines: at.Warm, ReadyVolumes: ready[n.ID]}
		for _, state := range engine.States {
			status.Engines[state] = at.ByState[state]
		}
		all = append(all, status)
	}
	seen := map[string]bool{}
	for _, n := range known {
		seen[n.ID] = true
		add(n)
	}
	for id := range counts {
		if !seen[id] {
			add(cluster.Node{ID: id})
		}
	}
	slices.SortFunc(all, func(a, b NodeStatus) int {
		if a.Known() != b.Known() {
			if a.Known() {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Known reports whether Nomad knows the node.
func (n *NodeStatus) Known() bool { return n.Status != "" }

func agentState(name string, agents map[string]bool) AgentState {
	alive, listed := agents[name]
	switch {
	case name == "" || !listed:
		return AgentUnknown
	case alive:
		return AgentOK
	}
	return AgentFailing
}

// agentReads is how many nodes' agents are read from Nomad concurrently.
const agentReads = 8

// agentNames caches the name of each node's Consul agent, which Nomad's lists of nodes do not
// contain.
type agentNames struct{ byNode sync.Map }

// consulAgents returns the names of the nodes' Consul agents, in their order; "": unknown.
// Only names that are not cached, or that Consul does not list, are read from Nomad.
func (s *Scheduler) consulAgents(ctx context.Context, nodes []NodeStatus, agents map[string]bool) []string {
	names := make([]string, len(nodes))
	var reads errgroup.Group
	reads.SetLimit(agentReads)
	for i := range nodes {
		id := nodes[i].ID
		if name, cached := s.agents.byNode.Load(id); cached {
			names[i], _ = name.(string)
			if _, listed := agents[names[i]]; listed {
				continue
			}
		}
		if !nodes[i].Known() {
			continue
		}
		reads.Go(func() error {
			name, err := s.cluster.ConsulAgent(ctx, id)
			if err != nil {
				s.log.Debug("cannot read the name of a node's Consul agent", "node_id", id, "error", err)
				return nil
			}
			names[i] = name
			s.agents.byNode.Store(id, name)
			return nil
		})
	}
	_ = reads.Wait()
	return names
}
