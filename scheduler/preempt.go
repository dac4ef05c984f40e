package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// makeRoom preempts warm engines for a user's engine that Nomad could not
// place, and says whether its node has room by now, where Nomad is to look again.
// A provision prefers any node that has room as it is; that, and one where others
// were preempted, it is placed on by mayRelocate.
func (o *operation) makeRoom(ctx context.Context, cause error) bool {
	code := AsError(cause).Code
	if errors.Is(cause, errDriverDown) || code != engine.CapacityExhausted && code != engine.PortExhaustion || o.row.ProductID == engine.WarmProduct || o.row.Op.Kind == engine.OpRecover {
		return false
	}
	if o.row.Op.Kind != engine.OpProvision {
		return o.preempt(ctx, o.row.NodeID)
	}
	nodes := o.s.cluster.Nodes()
	for _, n := range nodes {
		if n.ID != o.row.NodeID && !o.tried[n.ID] && o.s.canRun(n, cmp.Or(o.row.NodePool, defaultNodePool)) && hasRoom(n, o.s.needOf(o.row.Resources), 1) {
			return false
		}
	}
	if o.preempt(ctx, o.row.NodeID) {
		return true
	}
	for _, n := range nodes {
		if n.ID != o.row.NodeID && o.s.canRun(n, cmp.Or(o.row.NodePool, defaultNodePool)) && o.s.warm.preempt(ctx, n, o.row.Resources) {
			delete(o.tried, n.ID)
			return false
		}
	}
	return false
}

// preempt makes room on the engine's own node and has Nomad look again.
func (o *operation) preempt(ctx context.Context, nodeID string) bool {
	for _, n := range o.s.cluster.Nodes() {
		if n.ID != nodeID || !o.s.warm.preempt(ctx, n, o.row.Resources) {
			continue
		}
		if err := o.s.cluster.Evaluate(ctx, o.row.JobID()); err != nil {
			o.log.Warn("cannot have an engine placed where warm engines were preempted", "error", err)
			return false
		}
		return true
	}
	return false
}

// preempt destroys the unclaimed warm engines of a node that are in the way of an
// engine of a size, and says whether any of them went. Their kinds are not made
// anew for a while.
func (p *warmPool) preempt(ctx context.Context, node cluster.Node, ask engine.Resources) bool {
	var there []*engine.Row
	for _, row := range shuffled(p.s.mirror.Of(engine.WarmProduct)) {
		if row.NodeID == node.ID && (row.State == engine.Running || row.State == engine.Provisioning) && p.reserve(row) {
			there = append(there, row)
		}
	}
	going := inTheWay(node, there, p.s.needOf(ask))
	for _, row := range there {
		if !slices.Contains(going, row) {
			p.release(row)
		}
	}
	went := make([]bool, len(going))
	var wg sync.WaitGroup
	for i, row := range going {
		wg.Go(func() {
			defer p.release(row)
			p.backOff(ctx, row.Warm, "its engines were preempted for users' engines that had no room", false)
			var err error
			if went[i], err = p.destroy(ctx, row, "a user's engine needs its room"); err != nil && !overtaken(err) {
				p.s.log.Warn("a warm engine is in the way of a user's and cannot be removed", "engine_id", row.EngineID, "error", err)
			}
		})
	}
	wg.Wait()
	return slices.Contains(went, true)
}

// inTheWay are the warm engines of a node that have to go so that an engine of a
// size fits there; none: that would not do. It is one at least: Nomad has said
// that there is no room, whatever the view says.
func inTheWay(node cluster.Node, warm []*engine.Row, ask need) []*engine.Row {
	// Those that are still being made first, then the larger ones.
	made := func(e *engine.Row) int {
		if e.State == engine.Running {
			return 1
		}
		return 0
	}
	warm = slices.SortedStableFunc(slices.Values(warm), func(a, b *engine.Row) int {
		return cmp.Or(cmp.Compare(made(a), made(b)), cmp.Compare(b.Resources.MemoryMB, a.Resources.MemoryMB))
	})
	for i, row := range warm {
		node.FreeCPUMHz += row.Resources.CPUMHz
		node.FreeMemoryMB += row.Resources.MemoryMB
		node.FreeDiskMB += ask.diskMB
		node.FreePorts++
		if hasRoom(node, ask, 1) {
			return warm[:i+1]
		}
	}
	return nil
}
