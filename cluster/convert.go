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

// nodeFrom converts a node from an event or a list. Lists contain no attributes.
func (c *Cluster) nodeFrom(n *api.NodeListStub) *Node {
	node := &Node{
		ID: n.ID, Name: n.Name, Pool: n.NodePool, Status: n.Status, modifyIndex: n.ModifyIndex, Drivers: map[string]bool{}, Runtimes: map[string]bool{},
		Eligible:     n.Status == api.NodeStatusReady && n.SchedulingEligibility == api.NodeSchedulingEligible && !n.Drain,
		Draining:     n.Drain,
		VolumePlugin: c.volumePlugin == Mkdir || n.Attributes[c.pluginAttribute()] != "",
		DockerMounts: n.Attributes[dockerMounts] == "true" || n.Attributes[dockerMounts] == "1",
		Down:         n.Status == api.NodeStatusDown || n.Status == api.NodeStatusDisconnected,
	}
	for name, d := range n.Drivers {
		node.Drivers[name] = d != nil && d.Detected && d.Healthy
	}
	has := strings.Split(n.Attributes[jobs.RuntimesAttribute], ",")
	for _, name := range jobs.Runtimes() {
		node.Runtimes[name] = slices.Contains(has, name)
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

// dockerMounts is the attribute of nodes whose docker plugin has volumes { enabled = true }
// (drivers/docker/fingerprint.go in Nomad).
const dockerMounts = "driver.docker.volumes.enabled"

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
		alloc.Pulling, alloc.Missing = pulling(state.Events), missing(state.Events)
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
		alloc.Failure = cleanReason("allocation failed: " + lastWords(a))
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
