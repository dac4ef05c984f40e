package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// place is a candidate for a provision: a node, and a ready volume if the pool has one
// there.
type place struct {
	node   cluster.Node
	pooled *registry.PooledVolume
	id     string // for an engine without a pooled volume
	// fits reports whether the node has enough capacity according to the view. A place that
	// does not fit is still tried once, because only Nomad knows for certain.
	fits bool
}

// applyTo writes the place into a row with a provision: its node, the identity of its
// volume or a new one, and the first step.
func (p *place) applyTo(row *engine.Row) {
	row.NodeID, row.QuotaMB = p.node.ID, 0
	row.Op.Worker = ""
	if row.Op.Restoring != nil { // a fork
		p.applyToFork(row)
		return
	}
	row.Op.Step = plans.First(engine.OpProvision)
	if p.pooled != nil {
		row.Op.Step = plans.Forward[engine.OpProvision][1].Name // the volume exists already
		row.EngineID, row.VolumeID, row.VolumePath = p.pooled.EngineID, p.pooled.VolumeID, p.pooled.Path
		return
	}
	row.EngineID, row.VolumeID, row.VolumePath = p.id, "", ""
}

// applyToFork writes the place into the row of a provision whose volume is filled first.
func (p *place) applyToFork(row *engine.Row) {
	row.Op.Step, row.EngineID, row.VolumeID, row.VolumePath = stepForkVolume, p.id, "", ""
	row.Op.Deadline = time.Now().UTC().Add(operation.BrainTimeout)
	if row.Op.Restoring.Content == nil {
		row.Op.Step = stepForkTake
	}
	if p.pooled != nil {
		row.EngineID, row.VolumeID, row.VolumePath = p.pooled.EngineID, p.pooled.VolumeID, p.pooled.Path
	}
}

// defaultNodePool is where Nomad places jobs that name no pool.
const defaultNodePool = "default"

// choose picks the node for a new engine: one with enough free CPU, memory and ports for
// this many engines of its size, preferably with a ready volume, and of those the one with
// the most free memory. It reserves the pooled volume that it returns; the caller must
// claim or release it.
func (s *Scheduler) choose(ctx context.Context, nodePool string, ask engine.Resources, engines int, tried map[string]bool) (*place, error) {
	if nodePool == "" {
		nodePool = defaultNodePool
	}
	var places []*place
	for _, n := range s.cluster.Nodes() {
		if !tried[n.ID] && s.canRun(n, nodePool, ask.Isolation) {
			places = append(places, &place{node: n, fits: hasRoom(n, s.needOf(ask), engines)})
		}
	}
	if len(places) == 0 {
		return nil, s.noNode(nodePool, ask.Isolation)
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	slices.SortStableFunc(places, byRoom)
	for i, p := range places {
		if p.fits != places[0].fits {
			break
		}
		var err error
		switch {
		case i < poolLooks:
			err = s.pool.Read(ctx, p.node.ID)
		case i == poolLooks:
			err = s.pool.Read(ctx, "")
		}
		if err != nil {
			return nil, err
		}
		if p.pooled = s.pool.Hold(p.node.ID); p.pooled != nil {
			return p, nil
		}
	}
	places[0].id = s.newEngineID()
	return places[0], nil
}

// poolLooks is how many nodes' ready volumes are read one by one before those of all nodes
// are read: usually the first node has one, and a fleet has many nodes.
const poolLooks = 2

// errDriverDown: the task driver of the engine's node is not healthy or lacks the engine's
// runtime, so free capacity there does not help.
var errDriverDown = errors.New("the task driver of the engine's node cannot run the engine")

// noNode returns the error of a provision if no node can run engines.
func (s *Scheduler) noNode(nodePool, isolation string) error {
	err := &engine.Error{Code: engine.CapacityExhausted, Message: "no eligible node can run engines", RetryAfter: retryCapacity}
	for _, n := range s.cluster.Nodes() {
		switch {
		case !n.Eligible || n.Pool != nodePool:
			continue
		case !s.drives(n):
			err.Message += ": " + s.driverDown()
		case !n.VolumePlugin:
			err.Message += ": the nodes lack the plugin that creates their volumes (ORCH_VOLUME_PLUGIN)"
		case !isolates(n, isolation):
			err.Message += ": " + noRuntime(isolation)
		default:
			continue
		}
		break
	}
	return err
}

// drives reports whether a node's task driver of engines is healthy.
func (s *Scheduler) drives(n cluster.Node) bool { return n.Drivers[string(s.opts.Job.Driver)] }

// driverDown returns the reason for the caller.
func (s *Scheduler) driverDown() string {
	if s.opts.Job.Driver == jobs.Docker {
		return "the docker daemon is down there, or does not respond to Nomad"
	}
	return fmt.Sprintf("the task driver %s is not healthy there", s.opts.Job.Driver)
}

// isolates reports whether a node has the docker runtime of a kind of isolation.
func isolates(n cluster.Node, isolation string) bool {
	return isolation == "" || n.Runtimes[jobs.Runtime(isolation)]
}

// noRuntime returns the reason for the caller.
func noRuntime(isolation string) string {
	return fmt.Sprintf("the docker daemon lacks the runtime %q there, which the product's policy requires (isolation %q)", jobs.Runtime(isolation), isolation)
}

func (s *Scheduler) canRun(n cluster.Node, nodePool, isolation string) bool {
	return n.Pool == nodePool && !s.evacuates(n.ID) && n.TakesEngines(string(s.opts.Job.Driver)) && isolates(n, isolation)
}

// need is the capacity that an engine needs on its node, besides a port.
type need struct {
	engine.Resources
	diskMB int // the same for all engines of a job file
}

func (s *Scheduler) needOf(r engine.Resources) need {
	disk := 0
	if t := s.template.Load(); t != nil { // otherwise nothing is placed yet
		disk = t.DiskMB()
	}
	return need{r, disk}
}

// hasRoom reports whether this many engines of a size fit on a node, according to the view.
func hasRoom(n cluster.Node, ask need, engines int) bool {
	return n.FreeCPUMHz >= engines*ask.CPUMHz && n.FreeMemoryMB >= engines*ask.MemoryMB && n.FreeDiskMB >= engines*ask.diskMB && n.FreePorts >= engines
}

// byRoom is the order in which nodes are tried: nodes that fit, with the most free memory
// first.
func byRoom(a, b *place) int {
	if a.fits != b.fits {
		if a.fits {
			return -1
		}
		return 1
	}
	return cmp.Compare(b.node.FreeMemoryMB, a.node.FreeMemoryMB)
}

func shuffled[T any](list []T) []T {
	list = slices.Clone(list)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}
