package scheduler

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/registry"
)

// volumePool keeps a few ready, empty host volumes on every node, since a new
// one takes 6 to 10 s to become usable. The leader fills it; every replica
// claims from it. A volume is destroyed with its engine, never reused.
type volumePool struct {
	s     *Scheduler
	ready atomic.Int64
	nudge chan struct{} // a volume was claimed

	mu   sync.Mutex
	held map[string]bool // engine_ids that this replica is about to claim

	levels map[string]poolLevel // by node; only fill uses them
}

// poolLevel is how many volumes a node's pool had, and since when.
type poolLevel struct {
	count int
	since time.Time
}

func newVolumePool(s *Scheduler) *volumePool {
	return &volumePool{s: s, nudge: make(chan struct{}, 1), held: map[string]bool{}, levels: map[string]poolLevel{}}
}

// list returns the ready volumes, by node, that this replica is not yet claiming:
// of one node, or with "" of all.
func (p *volumePool) list(ctx context.Context, nodeID string) (map[string][]*registry.PooledVolume, error) {
	template := p.s.template.Load()
	if template == nil || p.s.opts.VolumePool == 0 {
		return nil, nil
	}
	listed, err := p.s.store.PooledVolumesOn(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	owner := template.Owner().String()
	p.mu.Lock()
	defer p.mu.Unlock()
	byNode := map[string][]*registry.PooledVolume{}
	for _, v := range listed {
		if v.Ready() && v.Owner == owner && !p.held[v.EngineID] {
			byNode[v.NodeID] = append(byNode[v.NodeID], v)
		}
	}
	return byNode, nil
}

// hold reserves one of the volumes within this replica, so that its provisions
// do not race each other for one; nil when others were faster.
func (p *volumePool) hold(ready []*registry.PooledVolume) *registry.PooledVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range shuffled(ready) {
		if !p.held[v.EngineID] {
			p.held[v.EngineID] = true
			return v
		}
	}
	return nil
}

// release gives up what hold reserved.
func (p *volumePool) release(v *registry.PooledVolume) {
	if v == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, v.EngineID)
}

// claimed asks for a refill.
func (p *volumePool) claimed() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

const (
	poolEvery   = 10 * time.Second
	poolBackoff = 5 * time.Second
	// poolPending is between two looks at volumes that are to become ready, and
	// how long claims are gathered before they are made good.
	poolPending = 500 * time.Millisecond
	// poolQuiet is how long a node's pool stays as it is, while more than half of
	// it is left, before it is filled up: for every change of a node's volumes
	// Nomad evaluates all jobs that have an allocation there (its
	// shouldCreateNodeEval and createNodeEvals), so many at a time cost as much as
	// one.
	poolQuiet = 5 * time.Second
	// poolMakers is how many volumes are made, or noted, at a time.
	poolMakers = 8
)

// run fills the pool, while this replica leads, until ctx ends.
func (p *volumePool) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := poolEvery
		if p.s.Ready() != nil || !p.s.replica.Leader() {
			wait = time.Second
		} else {
			pending, err := p.fill(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				p.s.log.Warn("cannot fill the volume pool; trying again", "error", err)
				wait = poolBackoff
			case pending:
				wait = poolPending
			}
		}
		select {
		case <-ctx.Done():
		case <-p.nudge:
			pause(ctx, poolPending)
		case <-time.After(wait):
		}
	}
}

// fill makes what is missing on each node, notes what has become ready, and
// removes what no engine can use. It says whether volumes are still to become
// ready.
func (p *volumePool) fill(ctx context.Context) (pending bool, err error) {
	entries, err := p.s.store.PooledVolumes(ctx)
	if err != nil {
		return false, err
	}
	template := p.s.template.Load()
	owner, params := template.Owner().String(), template.Owner().Params()
	count, ready := map[string]int{}, 0
	var waiting []*registry.PooledVolume
	for _, v := range entries {
		node, known := p.s.cluster.Node(v.NodeID)
		switch {
		case v.Owner != owner || !known || node.Down:
			// A node that is gone took its volumes with it; one that comes back
			// finds them deleted.
			if err := p.discard(ctx, v); err != nil && known && !node.Down {
				return false, err
			}
			continue
		case v.Ready():
			ready++
		default:
			waiting = append(waiting, v)
		}
		count[v.NodeID]++
	}
	p.ready.Store(int64(ready))
	making, doing := errgroup.WithContext(ctx)
	making.SetLimit(poolMakers)
	for _, node := range p.s.cluster.Nodes() {
		if !node.Eligible || !node.Drivers[string(p.s.opts.Job.Driver)] {
			continue
		}
		pending = pending || count[node.ID] < p.s.opts.VolumePool
		if !p.due(node.ID, count[node.ID], time.Now()) {
			continue
		}
		for n := count[node.ID]; n < p.s.opts.VolumePool && doing.Err() == nil; n++ {
			v := &registry.PooledVolume{EngineID: p.s.newEngineID(), NodeID: node.ID, Owner: owner}
			making.Go(func() error { return p.make(doing, v, params) })
		}
	}
	if err := making.Wait(); err != nil {
		return false, err
	}
	noted, err := p.noteReady(ctx, waiting)
	p.ready.Add(int64(noted))
	return pending || noted < len(waiting), err
}

// due says whether a node's pool is to be filled up now. Only fill calls it.
func (p *volumePool) due(nodeID string, count int, now time.Time) bool {
	level, known := p.levels[nodeID]
	if !known || level.count != count {
		level = poolLevel{count, now}
		p.levels[nodeID] = level
	}
	return count <= p.s.opts.VolumePool/2 || now.Sub(level.since) >= poolQuiet
}

// make notes an entry and begins to make its volume.
func (p *volumePool) make(ctx context.Context, v *registry.PooledVolume, params map[string]string) error {
	if err := p.s.store.PutPooledVolume(ctx, v); err != nil {
		return err
	}
	fault.Hit(pointPoolNoted)
	_, err := p.s.cluster.EnsureVolume(ctx, registry.JobID(v.EngineID), v.NodeID, params)
	return err
}

// noteReady records the ids of volumes that became usable, finishing those that
// a crash left without one.
func (p *volumePool) noteReady(ctx context.Context, waiting []*registry.PooledVolume) (int, error) {
	if len(waiting) == 0 {
		return 0, nil
	}
	pending, err := p.s.cluster.PendingVolumes(ctx)
	if err != nil {
		return 0, err
	}
	params := p.s.template.Load().Owner().Params()
	var noted atomic.Int64
	noting, doing := errgroup.WithContext(ctx)
	noting.SetLimit(poolMakers)
	for _, entry := range waiting {
		if name := registry.JobID(entry.EngineID); !pending[name] && doing.Err() == nil {
			noting.Go(func() error {
				v, err := p.s.cluster.EnsureVolume(doing, name, entry.NodeID, params)
				if err != nil || !v.Ready {
					return err
				}
				if v, err = p.s.cluster.Volume(doing, v.ID); err != nil {
					return err
				}
				entry.VolumeID, entry.Path = v.ID, v.Path
				if err := p.s.store.PutPooledVolume(doing, entry); err != nil {
					return err
				}
				noted.Add(1)
				return nil
			})
		}
	}
	err = noting.Wait()
	return int(noted.Load()), err
}

// discard takes an entry out of the pool and deletes its volume. The entry goes
// first: from then on nobody can claim what is being deleted. Where the
// deletion fails, the volume is an orphan that is empty.
func (p *volumePool) discard(ctx context.Context, v *registry.PooledVolume) error {
	if err := p.s.store.DeletePooledVolume(ctx, v); err != nil {
		if errors.Is(err, registry.ErrConflict) {
			return nil // somebody claimed it
		}
		return err
	}
	fault.Hit(pointPoolDiscarded)
	return p.s.cluster.DeleteVolumes(ctx, registry.JobID(v.EngineID))
}
