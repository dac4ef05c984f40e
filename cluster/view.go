package cluster

import (
	"slices"

	"github.com/hashicorp/nomad/api"
)

// Alloc is what the view keeps of an allocation.
type Alloc struct {
	ID, JobID, NodeID        string
	CreateIndex, ModifyIndex uint64
	// Desired is what the servers want: "run", "stop" or "evict".
	Desired string
	// Client is what the node says: "pending", "running", "complete",
	// "failed", "lost" or "unknown" (the node is silent).
	Client string
	// Addr is where the engine's port is reached, known once the allocation is
	// planned.
	Addr string
	// Failure is the cluster's reason why the process could not run or ended,
	// empty while it did neither.
	Failure string
	// Cause is what Failure is about.
	Cause Cause
	// Pulling is what the node says of the image that it is pulling for the process;
	// empty: it pulls none.
	Pulling string
	// Crash is when the process last ended without being asked to, in
	// nanoseconds since 1970 by its node's clock; 0: never. It is a mark to tell
	// one crash from another, not a time to compare with ours.
	Crash int64
	// OutOfMemory says that it ended then because it reached its memory limit.
	OutOfMemory bool
	// Started is when its process was started last, by the same clock; 0: so long
	// ago that Nomad does not keep it.
	Started int64
	// Unproven says of an allocation of the docker driver that is over that its
	// container may run on (see unproven).
	Unproven bool
	// Orphaned says of an allocation of the raw_exec driver that Nomad lost the executor
	// of a process, which may run on.
	Orphaned bool

	cpuMHz, memoryMB, diskMB int
	ports                    []int
}

// Terminal says whether the allocation's process is gone for good, as its node
// or, for a lost node, the servers say.
func (a *Alloc) Terminal() bool {
	return a.Client == api.AllocClientStatusComplete || a.Client == api.AllocClientStatusFailed || a.Client == api.AllocClientStatusLost
}

// Eval is what is kept of an evaluation of a watched job.
type Eval struct {
	ID                       string
	CreateIndex, ModifyIndex uint64
	// Failed says why the job could not be placed; nil when it could.
	Failed *PlacementFailure
}

// PlacementFailure is Nomad's word on why there is no place for an engine.
type PlacementFailure struct {
	// Ports says that dynamic ports ran out on a node that otherwise fitted.
	Ports bool
	// Driver says that what a node lacked was the job's task driver, in good health.
	Driver bool
	// Volume says that what a node lacked was the engine's host volume: its client could
	// not restore it, for example.
	Volume bool
	// Reason names the exhausted dimensions and failed constraints.
	Reason string
}

// Node is a client node with what is still free on it.
type Node struct {
	ID, Name, Pool string
	// Eligible: ready, not draining, open for placements.
	Eligible bool
	Down     bool            // the servers do not hear from it
	Drivers  map[string]bool // healthy task drivers
	// VolumePlugin says that it has the plugin that makes volumes.
	VolumePlugin bool
	// InTouch is 0 while the node is not ready, and another number each time that the
	// servers have lost it and have it back; only ReadNode tells it. (The time of its
	// status tells nothing: a node registers anew with each volume that is made there.)
	InTouch uint64
	// Free is what no living allocation has reserved, and Allocs how many there are.
	FreeCPUMHz, FreeMemoryMB, FreePorts, FreeDiskMB int
	Allocs                                          int

	modifyIndex            uint64
	cpuMHz, memoryMB       int
	diskMB                 int
	minPort, maxPort       int
	reservedInDynamicRange int
}

type view struct {
	nodes  map[string]*Node
	held   map[string]*holding // by node
	allocs map[string]*Alloc
	byJob  map[string][]*Alloc         // most have one
	evals  map[string]map[string]*Eval // watched jobs only
}

// holding is what living allocations have reserved of a node.
type holding struct {
	allocs                   int
	cpuMHz, memoryMB, diskMB int
	ports                    map[int]int // by number: how many hold it
	// dynamic is how many of them are from min to max.
	dynamic, min, max int
}

// dynamicPorts is how many ports from min to max are held: the node's range, which
// hardly ever changes.
func (h *holding) dynamicPorts(min, max int) int {
	if h.min != min || h.max != max {
		h.dynamic, h.min, h.max = 0, min, max
		for port, times := range h.ports {
			if min <= port && port <= max {
				h.dynamic += times
			}
		}
	}
	return h.dynamic
}

func newView() view {
	return view{
		nodes: map[string]*Node{}, held: map[string]*holding{}, allocs: map[string]*Alloc{}, byJob: map[string][]*Alloc{},
		evals: map[string]map[string]*Eval{},
	}
}

// hold counts what an allocation has reserved, times 1 or -1.
func (v *view) hold(a *Alloc, times int) {
	if a.Terminal() {
		return
	}
	h := v.held[a.NodeID]
	if h == nil {
		h = &holding{ports: map[int]int{}}
		v.held[a.NodeID] = h
	}
	h.allocs += times
	h.cpuMHz += times * a.cpuMHz
	h.memoryMB += times * a.memoryMB
	h.diskMB += times * a.diskMB
	for _, port := range a.ports {
		if h.ports[port] += times; h.ports[port] == 0 {
			delete(h.ports, port)
		}
		if h.min <= port && port <= h.max {
			h.dynamic += times
		}
	}
}

// putAlloc keeps the newer of what is known and what is told. Allocations that
// are over are kept only for watched jobs.
func (v *view) putAlloc(a *Alloc, watched bool) {
	if old := v.allocs[a.ID]; old != nil && old.ModifyIndex > a.ModifyIndex {
		return
	}
	v.dropAlloc(a.ID)
	if a.Terminal() && !watched {
		return
	}
	v.allocs[a.ID] = a
	v.byJob[a.JobID] = append(v.byJob[a.JobID], a)
	v.hold(a, 1)
}

func (v *view) dropAlloc(id string) {
	a := v.allocs[id]
	if a == nil {
		return
	}
	v.hold(a, -1)
	delete(v.allocs, id)
	left := slices.DeleteFunc(v.byJob[a.JobID], func(other *Alloc) bool { return other == a })
	if v.byJob[a.JobID] = left; len(left) == 0 {
		delete(v.byJob, a.JobID)
	}
}

// Nodes returns every known node with what is free on it.
func (c *Cluster) Nodes() []Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := make([]Node, 0, len(c.view.nodes))
	for _, n := range c.view.nodes {
		n := *n
		n.FreeCPUMHz, n.FreeMemoryMB, n.FreeDiskMB = n.cpuMHz, n.memoryMB, n.diskMB
		n.FreePorts = n.maxPort - n.minPort + 1 - n.reservedInDynamicRange
		if h := c.view.held[n.ID]; h != nil {
			n.Allocs = h.allocs
			n.FreeCPUMHz -= h.cpuMHz
			n.FreeMemoryMB -= h.memoryMB
			n.FreeDiskMB -= h.diskMB
			n.FreePorts -= h.dynamicPorts(n.minPort, n.maxPort)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// Newest returns the newest allocation that the view has of a job. Those that are
// over are forgotten, unless the job is watched.
func (c *Cluster) Newest(jobID string) (Alloc, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := newest(c.view.byJob[jobID]); a != nil {
		return *a, true
	}
	return Alloc{}, false
}

func newest(allocs []*Alloc) (newest *Alloc) {
	for _, a := range allocs {
		if newest == nil || a.CreateIndex > newest.CreateIndex {
			newest = a
		}
	}
	return newest
}

// KnowsAlloc says whether the view has an allocation of a job. Those that are over
// are forgotten, unless the job is watched.
func (c *Cluster) KnowsAlloc(jobID, allocID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.view.byJob[jobID], func(a *Alloc) bool { return a.ID == allocID })
}

// Node returns one node as the view has it.
func (c *Cluster) Node(id string) (Node, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.view.nodes[id]
	if !ok {
		return Node{}, false
	}
	return *n, true
}

// TakesEngines says whether engines of a task driver can be made on the node: it has the
// driver, in good health, and the plugin that makes their volumes.
func (n *Node) TakesEngines(driver string) bool {
	return n.Eligible && n.VolumePlugin && n.Drivers[driver]
}
