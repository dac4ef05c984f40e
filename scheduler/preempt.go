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

// makeRoom preempts warm engines for a user's engine that Nomad could not place, and
// reports whether its node then has capacity, so that Nomad should try again. A provision
// prefers a node with free capacity; mayRelocate places it there, or on one where others
// were preempted.
func (o *work) makeRoom(ctx context.Context, cause error) bool {
	code := AsError(cause).Code
	if errors.Is(cause, errDriverDown) || code != engine.CapacityExhausted && code != engine.PortExhaustion || o.Row.ProductID == engine.WarmProduct || o.Row.Op.Kind == engine.OpRecover {
		return false
	}
	if o.Row.Op.Kind != engine.OpProvision {
		return o.preempt(ctx, o.Row.NodeID)
	}
	nodes := o.s.cluster.Nodes()
	for _, n := range nodes {
		if n.ID != o.Row.NodeID && !o.tried[n.ID] && o.s.canRun(n, cmp.Or(o.Row.NodePool, defaultNodePool), o.Row.Resources.Isolation) && hasRoom(n, o.s.needOf(o.Row.Resources), 1) {
			return false
		}
	}
	if o.preempt(ctx, o.Row.NodeID) {
		return true
	}
	for _, n := range nodes {
		if n.ID != o.Row.NodeID && o.s.canRun(n, cmp.Or(o.Row.NodePool, defaultNodePool), o.Row.Resources.Isolation) && o.s.warm.preempt(ctx, n, o.Row.Resources) {
			delete(o.tried, n.ID)
			return false
		}
	}
	return false
}

// preempt frees capacity on the engine's own node, and makes Nomad try again.
func (o *work) preempt(ctx context.Context, nodeID string) bool {
	for _, n := range o.s.cluster.Nodes() {
		if n.ID != nodeID || !o.s.warm.preempt(ctx, n, o.Row.Resources) {
			continue
		}
		if err := o.s.cluster.Evaluate(ctx, o.Row.JobID()); err != nil {
			o.Log.Warn("cannot make Nomad place an engine after warm engines were preempted", "error", err)
			return false
		}
		return true
	}
	return false
}

// preempt destroys unclaimed warm engines of a node so that an engine of this size fits,
// and reports whether it destroyed any. No new ones of their kinds are created for a while.
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
			p.backOff(ctx, row.Warm, "its engines were preempted, because users' engines needed their capacity", false)
			var err error
			if went[i], err = p.destroy(ctx, row, "a user's engine needs its capacity"); err != nil && !overtaken(err) {
				p.s.log.Warn("cannot destroy a warm engine whose capacity a user's engine needs", "engine_id", row.EngineID, "error", err)
			}
		})
	}
	wg.Wait()
	return slices.Contains(went, true)
}

// inTheWay returns the warm engines of a node that must be destroyed so that an engine of
// this size fits; none if that would not suffice. It returns at least one, because Nomad
// has reported a lack of capacity, whatever the view shows.
func inTheWay(node cluster.Node, warm []*engine.Row, ask need) []*engine.Row {
	// Engines that are still being created first, then the larger ones.
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
