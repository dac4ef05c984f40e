package cluster

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
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

// Terminal reports whether the allocation's process has ended for good, according to its
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
	// Eligible: ready, not draining, and eligible for placements.
	Eligible bool
	Down     bool            // the servers get no heartbeat from it
	Drivers  map[string]bool // healthy task drivers
	// VolumePlugin reports whether the node has the plugin that creates volumes.
	VolumePlugin bool
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

// nodeFrom converts a node from an event or a list. Lists contain no attributes.
func (c *Cluster) nodeFrom(n *api.NodeListStub) *Node {
	node := &Node{
		ID: n.ID, Name: n.Name, Pool: n.NodePool, modifyIndex: n.ModifyIndex, Drivers: map[string]bool{},
		Eligible:     n.Status == api.NodeStatusReady && n.SchedulingEligibility == api.NodeSchedulingEligible && !n.Drain,
		VolumePlugin: c.volumePlugin == Mkdir || n.Attributes[c.pluginAttribute()] != "",
		Down:         n.Status == api.NodeStatusDown || n.Status == api.NodeStatusDisconnected,
	}
	for name, d := range n.Drivers {
		node.Drivers[name] = d != nil && d.Detected && d.Healthy
	}
	if r := n.NodeResources; r != nil {
		node.cpuMHz, node.memoryMB, node.diskMB = int(r.Cpu.CpuShares), int(r.Memory.MemoryMB), int(r.Disk.DiskMB)
		node.minPort, node.maxPort = r.MinDynamicPort, r.MaxDynamicPort
	}
	if r := n.ReservedResources; r != nil {
		node.cpuMHz -= int(r.Cpu.CpuShares)
		node.memoryMB -= int(r.Memory.MemoryMB)
		node.diskMB -= int(r.Disk.DiskMB)
		node.reservedInDynamicRange = countPorts(r.Networks.ReservedHostPorts, node.minPort, node.maxPort)
	}
	return node
}

// pluginAttribute is the attribute of nodes that have the volume plugin.
func (c *Cluster) pluginAttribute() string {
	return "plugins.host_volume." + c.volumePlugin + ".version"
}

// countPorts counts the ports of a list such as "22,80,8000-8010" that are from min to max.
func countPorts(list string, min, max int) int {
	count := 0
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		lo, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		hi := lo
		if isRange {
			if hi, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		for p := lo; p <= hi; p++ {
			if p >= min && p <= max {
				count++
			}
		}
	}
	return count
}

// allocFrom converts an allocation from an event or a list.
func allocFrom(a *api.AllocationListStub) *Alloc {
	alloc := &Alloc{
		ID: a.ID, JobID: a.JobID, NodeID: a.NodeID, CreateIndex: a.CreateIndex, ModifyIndex: a.ModifyIndex,
		Desired: a.DesiredStatus, Client: a.ClientStatus,
	}
	if r := a.AllocatedResources; r != nil {
		for _, t := range r.Tasks {
			alloc.cpuMHz += int(t.Cpu.CpuShares)
			alloc.memoryMB += int(t.Memory.MemoryMB)
		}
		alloc.diskMB = int(r.Shared.DiskMB)
		for _, p := range r.Shared.Ports {
			alloc.ports = append(alloc.ports, p.Value)
			if p.Label == jobs.PortLabel {
				alloc.Addr = net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
			}
		}
	}
	for _, state := range a.TaskStates {
		for _, event := range state.Events {
			// The first failure causes the others. A failed template is an exception: it
			// ends the allocation even if Nomad has restarted the process after a crash
			// before.
			if reason, cause := failure(event); reason != "" && (alloc.Failure == "" || cause == CauseTemplate) {
				alloc.Failure, alloc.Cause = reason, cause
			}
		}
	}
	for _, state := range a.TaskStates {
		alloc.Pulling = pulling(state.Events)
		if crash, oom := lastCrash(state.Events); crash > alloc.Crash {
			alloc.Crash, alloc.OutOfMemory = crash, oom
		}
		alloc.Unproven = alloc.Unproven || unproven(state.Events)
		alloc.Orphaned = alloc.Orphaned || orphaned(state.Events)
		for _, event := range state.Events {
			if event.Type == api.TaskStarted {
				alloc.Started = max(alloc.Started, event.Time)
			}
		}
	}
	if alloc.Failure == "" && a.ClientStatus == api.AllocClientStatusFailed {
		alloc.Failure = cleanReason("allocation failed: " + a.ClientDescription)
	}
	return alloc
}

// lastCrash returns when a task's process last ended by itself, and whether at its memory
// limit (oom). Nomad also restarts a process on request, for example for a template with a
// new key, and reports an event before. It keeps only the last ten events, so for the first
// of them it is unknown whether there was a request: it does not count as a crash.
func lastCrash(events []*api.TaskEvent) (at int64, oom bool) {
	asked := true
	for i, e := range events {
		switch e.Type {
		case api.TaskSignaling: // a signal neither starts nor ends a process
			asked = asked && i > 0
		case api.TaskRestartSignal, api.TaskKilling, api.TaskKilled:
			asked = true
		case api.TaskTerminated:
			if !asked {
				at, oom = e.Time, outOfMemory(e)
			}
			asked = false
		default:
			asked = false
		}
	}
	return at, oom
}

// missingDrivers is the constraint that Nomad's scheduler reports for nodes without the
// job's task driver in a healthy state (FilterConstraintDrivers in its feasible.go).
const missingDrivers = "missing drivers"

// missingVolumes is the constraint for nodes that do not offer the job's host volumes
// (FilterConstraintHostVolumes).
const missingVolumes = "missing compatible host volumes"

// evalFrom converts an evaluation from an event or a list.
func evalFrom(e *api.Evaluation) *Eval {
	eval := &Eval{ID: e.ID, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex}
	for _, m := range e.FailedTGAllocs {
		f := &PlacementFailure{}
		var why []string
		for dim := range m.DimensionExhausted {
			f.Ports = f.Ports || strings.HasPrefix(dim, "network:") && strings.Contains(dim, "port")
			why = append(why, dim+" exhausted")
		}
		f.Driver = m.ConstraintFiltered[missingDrivers] > 0 && len(m.DimensionExhausted) == 0
		f.Volume = m.ConstraintFiltered[missingVolumes] > 0 && len(m.DimensionExhausted) == 0
		for constraint := range m.ConstraintFiltered {
			why = append(why, constraint)
		}
		if len(why) == 0 {
			why = append(why, fmt.Sprintf("no eligible node among %d", m.NodesEvaluated))
		}
		f.Reason = cleanReason(strings.Join(why, ", "))
		eval.Failed = f
	}
	return eval
}
