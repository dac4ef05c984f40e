package cluster

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/nomad/api"
)

// Alloc is an allocation in the view.
type Alloc struct {
	ID, JobID, NodeID        string
	CreateIndex, ModifyIndex uint64
	// Desired is the state that Nomad's servers want: "run", "stop" or "evict".
	Desired string
	// Client is the state that the node reports: "pending", "running", "complete",
	// "failed", "lost" or "unknown" (the node does not report).
	Client string
	// Addr is the address of the engine's port. It is known as soon as the allocation is
	// planned.
	Addr string
	// Failure is Nomad's reason why the process could not run or has ended; empty if
	// neither.
	Failure string
	// Cause is the kind of Failure.
	Cause Cause
	// Pulling is the node's last message about the image that it is pulling for the
	// process; empty: it is pulling none.
	Pulling string
	// Missing is what the job's templates wait for before the process can start; empty:
	// nothing, or Nomad did not report it yet.
	Missing string
	// Crash is when the process last ended without a request, in nanoseconds since 1970 by
	// its node's clock; 0: never. Use it only to distinguish two crashes, because the
	// node's clock may differ from ours.
	Crash int64
	// OutOfMemory reports whether that crash was at the memory limit.
	OutOfMemory bool
	// Started is when the process was last started, by the same clock; 0: so long ago that
	// Nomad no longer knows.
	Started int64
	// Unproven reports that the container of a finished docker allocation may still run
	// (see unproven).
	Unproven bool
	// Orphaned reports that Nomad lost the executor of a raw_exec process, which may still
	// run.
	Orphaned bool

	cpuMHz, memoryMB, diskMB int
	ports                    []int
}

// Terminal reports whether the allocation's process has ended permanently, according to its
// node or, for a lost node, to Nomad's servers.
func (a *Alloc) Terminal() bool {
	return a.Client == api.AllocClientStatusComplete || a.Client == api.AllocClientStatusFailed || a.Client == api.AllocClientStatusLost
}

// Eval is an evaluation of a watched job.
type Eval struct {
	ID                       string
	CreateIndex, ModifyIndex uint64
	// Failed is why the job could not be placed; nil if it could.
	Failed *PlacementFailure
}

// PlacementFailure is Nomad's reason why an engine could not be placed.
type PlacementFailure struct {
	// Ports reports that an otherwise suitable node has no free dynamic ports.
	Ports bool
	// Driver reports that a node lacks the job's task driver in a healthy state.
	Driver bool
	// Volume reports that a node does not offer the engine's host volume, for example
	// because its client could not restore it.
	Volume bool
	// Reason names the exhausted dimensions and the failed constraints.
	Reason string
}

// Node is a client node with its free resources.
type Node struct {
	ID, Name, Pool string
	// Status is "initializing", "ready", "down" or "disconnected".
	Status string
	// Eligible: ready, not draining, and eligible for placements.
	Eligible bool
	Draining bool
	Down     bool            // the servers get no heartbeat from it
	Drivers  map[string]bool // healthy task drivers
	// Runtimes are those of jobs.Runtimes that the node's docker daemon has.
	Runtimes map[string]bool
	// VolumePlugin reports whether the node has the plugin that creates volumes.
	VolumePlugin bool
	// DockerMounts reports whether the node's docker plugin lets tasks mount directories of
	// the node. Only ReadNode sets it.
	DockerMounts bool
	// InTouch is 0 while the node is not ready, and changes each time that the servers have
	// lost the node and have it back. Only ReadNode sets it. (The time of the node's status
	// is no substitute: a node registers again for each volume that is created on it.)
	InTouch uint64
	// Free resources are those not reserved by a living allocation; Allocs counts the
	// living allocations.
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
	byJob  map[string][]*Alloc         // most jobs have one
	evals  map[string]map[string]*Eval // watched jobs only
}

// holding is what the living allocations of a node have reserved.
type holding struct {
	allocs                   int
	cpuMHz, memoryMB, diskMB int
	ports                    map[int]int // by port number: how many allocations have it
	// dynamic is how many reserved ports are from min to max.
	dynamic, min, max int
}

// dynamicPorts counts the reserved ports from min to max, the node's dynamic range. The
// count is cached, because this range hardly ever changes.
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

// hold adds (times 1) or subtracts (times -1) what an allocation has reserved.
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

// putAlloc stores an allocation unless the view has a newer version of it. Finished
// allocations are kept only for watched jobs.
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

// Nodes returns every known node with its free resources.
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

// Newest returns the newest allocation of a job in the view. The view has finished
// allocations only of watched jobs.
func (c *Cluster) Newest(jobID string) (Alloc, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := newest(c.view.byJob[jobID]); a != nil {
		return *a, true
	}
	return Alloc{}, false
}

// ReadNewest reads the newest allocation of a job from Nomad itself: the view may not have what
// has just happened. ErrNotFound: there is none.
func (c *Cluster) ReadNewest(ctx context.Context, jobID string) (Alloc, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, _, err := c.client.Jobs().Allocations(jobID, true, c.read(ctx))
	if err != nil {
		return Alloc{}, classify(err)
	}
	allocs := make([]*Alloc, 0, len(list))
	for _, stub := range list {
		allocs = append(allocs, allocFrom(stub))
	}
	if a := newest(allocs); a != nil {
		return *a, nil
	}
	return Alloc{}, fmt.Errorf("%w: job %s has no allocation", ErrNotFound, jobID)
}

func newest(allocs []*Alloc) (newest *Alloc) {
	for _, a := range allocs {
		if newest == nil || a.CreateIndex > newest.CreateIndex {
			newest = a
		}
	}
	return newest
}

// KnowsAlloc reports whether the view has an allocation of a job. The view has finished
// allocations only of watched jobs.
func (c *Cluster) KnowsAlloc(jobID, allocID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.view.byJob[jobID], func(a *Alloc) bool { return a.ID == allocID })
}

// Node returns one node from the view.
func (c *Cluster) Node(id string) (Node, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.view.nodes[id]
	if !ok {
		return Node{}, false
	}
	return *n, true
}

// TakesEngines reports whether engines of a task driver can be created on the node: it has
// the healthy driver, and the plugin that creates their volumes.
func (n *Node) TakesEngines(driver string) bool {
	return n.Eligible && n.VolumePlugin && n.Drivers[driver]
}
