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

// nodeFrom reads a node as events tell it. Lists leave its attributes out.
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

// pluginAttribute is the attribute of a node that has the volume plugin.
func (c *Cluster) pluginAttribute() string {
	return "plugins.host_volume." + c.volumePlugin + ".version"
}

// countPorts counts the ports of a list such as "22,80,8000-8010" from min to
// max.
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

// allocFrom reads an allocation as lists and events tell it.
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
			// The first is what the others come of, and after a crash that Nomad healed one
			// of a template ends the allocation all the same.
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

// lastCrash is when a task's process last ended by itself. Nomad restarts it also
// when it is asked to, by a template with a new key for one, and says so before.
// It keeps the last ten events alone: what was said before the first of them is
// not known, so that one does not count. oom: it ended at its memory limit.
func lastCrash(events []*api.TaskEvent) (at int64, oom bool) {
	asked := true
	for i, e := range events {
		switch e.Type {
		case api.TaskSignaling: // by which a process neither ends nor begins
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

// missingDrivers is what Nomad's scheduler says of nodes without a healthy task driver of
// the job (FilterConstraintDrivers in its feasible.go).
const missingDrivers = "missing drivers"

// missingVolumes is the same of nodes that do not offer the job's host volumes
// (FilterConstraintHostVolumes).
const missingVolumes = "missing compatible host volumes"

// evalFrom reads an evaluation as lists and events tell it.
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
