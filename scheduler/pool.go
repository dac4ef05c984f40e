package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

	// Only run uses these. By node:
	levels   map[string]poolLevel
	setbacks map[string]poolSetback
	compared time.Time // when the entries were last compared with Nomad's volumes
}

// poolLevel is how many volumes a node's pool had, and since when.
type poolLevel struct {
	count int
	since time.Time
}

// poolSetback is why no volumes are made on a node for a while.
type poolSetback struct {
	n     int // tries in a row that failed
	until time.Time
}

func newVolumePool(s *Scheduler) *volumePool {
	return &volumePool{
		s: s, nudge: make(chan struct{}, 1), held: map[string]bool{},
		levels: map[string]poolLevel{}, setbacks: map[string]poolSetback{},
	}
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
	poolEvery = 10 * time.Second
	// poolBackoff is the first wait after a failure, which doubles up to
	// poolBackoffMax.
	poolBackoff    = 5 * time.Second
	poolBackoffMax = 5 * time.Minute
	// poolCompare is how often the entries are compared with Nomad's volumes, all
	// of which are read for that: a hand may have deleted one.
	poolCompare = 30 * time.Second
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
			if err != nil && ctx.Err() == nil {
				p.s.log.Warn("cannot fill the volume pool; trying again", "error", err)
				wait = poolBackoff
			}
			if pending {
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
// ready. What fails on one node keeps no other from its volumes.
func (p *volumePool) fill(ctx context.Context) (pending bool, err error) {
	entries, err := p.s.store.PooledVolumes(ctx)
	if err != nil {
		return false, err
	}
	gone, err := p.gone(ctx, entries)
	if err != nil {
		return false, err
	}
	template, now := p.s.template.Load(), time.Now()
	owner := template.Owner().String()
	count, ready := map[string]int{}, 0
	var waiting []*registry.PooledVolume
	for _, v := range entries {
		node, known := p.s.cluster.Node(v.NodeID)
		silent := !known || node.Down
		switch {
		case v.Owner != owner || silent || count[v.NodeID] >= p.s.opts.VolumePool || gone[v.EngineID]:
			// A node that is gone took its volumes with it; one that comes back
			// finds them deleted.
			if derr := p.discard(ctx, v); derr != nil && !silent {
				err = errors.Join(err, derr)
			}
			continue
		case v.Ready():
			ready++
		case !p.setBack(v.NodeID, now):
			waiting = append(waiting, v)
		}
		count[v.NodeID]++
	}
	p.ready.Store(int64(ready))
	var missing []*registry.PooledVolume
	for _, node := range p.s.cluster.Nodes() {
		if !node.Eligible || !node.Drivers[string(p.s.opts.Job.Driver)] || p.setBack(node.ID, now) {
			continue
		}
		pending = pending || count[node.ID] < p.s.opts.VolumePool
		if !p.due(node.ID, count[node.ID], now) {
			continue
		}
		for n := count[node.ID]; n < p.s.opts.VolumePool; n++ {
			missing = append(missing, &registry.PooledVolume{EngineID: p.s.newEngineID(), NodeID: node.ID, Owner: owner})
		}
	}
	params := template.Owner().Params()
	_, merr := p.each(missing, func(v *registry.PooledVolume) (bool, error) { return false, p.make(ctx, v, params) })
	noted, nerr := p.noteReady(ctx, waiting, params)
	p.ready.Add(int64(noted))
	return pending || noted < len(waiting), errors.Join(err, merr, nerr)
}

// gone are the ready entries, by engine_id, whose volume is not there any more,
// from time to time.
func (p *volumePool) gone(ctx context.Context, entries []*registry.PooledVolume) (map[string]bool, error) {
	if len(entries) == 0 || time.Since(p.compared) < poolCompare {
		return nil, nil
	}
	// Read after the entries: a volume that an entry has an id of was there before.
	all, err := p.s.cluster.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	p.compared = time.Now()
	there := make(map[string]bool, len(all))
	for _, v := range all {
		there[v.ID] = true
	}
	gone := map[string]bool{}
	for _, v := range entries {
		gone[v.EngineID] = v.Ready() && !there[v.VolumeID]
	}
	return gone, nil
}

// each does something for each of the entries, a few at a time, and keeps a node on
// which it failed from being tried for a while, which doubles. It returns how many
// times do said true.
func (p *volumePool) each(entries []*registry.PooledVolume, do func(*registry.PooledVolume) (bool, error)) (n int, err error) {
	var mu sync.Mutex
	failed, tried := map[string]error{}, map[string]bool{}
	var work errgroup.Group
	work.SetLimit(poolMakers)
	for _, v := range entries {
		tried[v.NodeID] = true
		mu.Lock()
		skip := failed[v.NodeID] != nil
		mu.Unlock()
		if skip {
			continue
		}
		work.Go(func() error {
			yes, err := do(v)
			mu.Lock()
			defer mu.Unlock()
			if yes {
				n++
			}
			if err != nil {
				failed[v.NodeID] = err
			}
			return nil
		})
	}
	_ = work.Wait()
	for node := range tried {
		if failed[node] == nil {
			delete(p.setbacks, node)
			continue
		}
		b := p.setbacks[node].n
		p.setbacks[node] = poolSetback{b + 1, time.Now().Add(Backoff{Base: poolBackoff, Max: poolBackoffMax}.after(b))}
		err = errors.Join(err, fmt.Errorf("node %s: %w", node, failed[node]))
	}
	return n, err
}

// setBack says whether a node is left alone for now.
func (p *volumePool) setBack(nodeID string, now time.Time) bool {
	return now.Before(p.setbacks[nodeID].until)
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
func (p *volumePool) noteReady(ctx context.Context, waiting []*registry.PooledVolume, params map[string]string) (int, error) {
	if len(waiting) == 0 {
		return 0, nil
	}
	pending, err := p.s.cluster.PendingVolumes(ctx)
	if err != nil {
		return 0, err
	}
	reported := slices.DeleteFunc(slices.Clone(waiting), func(v *registry.PooledVolume) bool { return pending[registry.JobID(v.EngineID)] })
	return p.each(reported, func(entry *registry.PooledVolume) (bool, error) {
		v, err := p.s.cluster.EnsureVolume(ctx, registry.JobID(entry.EngineID), entry.NodeID, params)
		if err == nil && v.Ready {
			v, err = p.s.cluster.Volume(ctx, v.ID)
		}
		if err != nil || !v.Ready {
			return false, err
		}
		entry.VolumeID, entry.Path = v.ID, v.Path
		err = p.s.store.PutPooledVolume(ctx, entry)
		return err == nil, err
	})
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
