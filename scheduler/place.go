package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

// place is where a provision goes: a node and, when the pool has one there, a
// ready volume.
type place struct {
	node   cluster.Node
	pooled *registry.PooledVolume
	id     string // for an engine without a pooled volume
	// fits says whether the view thinks that the node has room. A place that
	// does not fit is still worth one try: the word that there is no room is
	// Nomad's.
	fits bool
}

// applyTo gives a row that carries a provision the place's node, the identity
// that comes with its volume or a new one, and the step to begin with.
func (p *place) applyTo(row *engine.Row) {
	row.NodeID, row.QuotaMB = p.node.ID, 0
	row.Op.Step = plans.First(engine.OpProvision)
	if p.pooled != nil {
		row.Op.Step = plans.Forward[engine.OpProvision][1].Name // the volume is there
		row.EngineID, row.VolumeID, row.VolumePath = p.pooled.EngineID, p.pooled.VolumeID, p.pooled.Path
		return
	}
	row.EngineID, row.VolumeID, row.VolumePath = p.id, "", ""
}

// defaultNodePool is where Nomad places jobs that name no pool.
const defaultNodePool = "default"

// choose picks the node for a new engine: one with free CPU, memory and ports for
// so many of its size, preferably with a ready volume, and of those the one with
// the most free memory. A pooled volume it returns is held for the caller, who
// claims or releases it.
func (s *Scheduler) choose(ctx context.Context, nodePool string, ask engine.Resources, engines int, tried map[string]bool) (*place, error) {
	if nodePool == "" {
		nodePool = defaultNodePool
	}
	var places []*place
	for _, n := range s.cluster.Nodes() {
		if !tried[n.ID] && s.canRun(n, nodePool) {
			places = append(places, &place{node: n, fits: hasRoom(n, s.needOf(ask), engines)})
		}
	}
	if len(places) == 0 {
		return nil, s.noNode(nodePool)
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

// poolLooks is how many nodes' ready volumes are read one after the other before
// those of all are: mostly the first has one, and a fleet has many nodes.
const poolLooks = 2

// errDriverDown: the task driver of the engine's node is not healthy, so that no room that
// is made there helps.
var errDriverDown = errors.New("the task driver of the engine's node is not healthy")

// noNode is what a provision hears when no node can run engines.
func (s *Scheduler) noNode(nodePool string) error {
	err := &engine.Error{Code: engine.CapacityExhausted, Message: "no eligible node can run engines", RetryAfter: retryCapacity}
	for _, n := range s.cluster.Nodes() {
		switch {
		case !n.Eligible || n.Pool != nodePool:
			continue
		case !s.drives(n):
			err.Message += ": " + s.driverDown()
		case !n.VolumePlugin:
			err.Message += ": the plugin that makes their volumes (ORCH_VOLUME_PLUGIN) is missing there"
		default:
			continue
		}
		break
	}
	return err
}

// drives says whether a node's task driver of engines is healthy.
func (s *Scheduler) drives(n cluster.Node) bool { return n.Drivers[string(s.opts.Job.Driver)] }

// driverDown says in words that it is not.
func (s *Scheduler) driverDown() string {
	if s.opts.Job.Driver == jobs.Docker {
		return "the docker daemon is down there, or does not answer Nomad"
	}
	return fmt.Sprintf("the task driver %s is not healthy there", s.opts.Job.Driver)
}

func (s *Scheduler) canRun(n cluster.Node, nodePool string) bool {
	return n.Pool == nodePool && n.TakesEngines(string(s.opts.Job.Driver))
}

// need is what an engine takes of its node, beside a port.
type need struct {
	engine.Resources
	diskMB int // the same for all engines of a job file
}

func (s *Scheduler) needOf(r engine.Resources) need {
	disk := 0
	if t := s.template.Load(); t != nil { // else nothing is placed yet
		disk = t.DiskMB()
	}
	return need{r, disk}
}

// hasRoom says whether so many engines of a size fit on a node, as the view has it.
func hasRoom(n cluster.Node, ask need, engines int) bool {
	return n.FreeCPUMHz >= engines*ask.CPUMHz && n.FreeMemoryMB >= engines*ask.MemoryMB && n.FreeDiskMB >= engines*ask.diskMB && n.FreePorts >= engines
}

// byRoom is the order in which nodes are tried: those that fit, the most free
// memory first.
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
