package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/cluster"
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

	setbacks map[string]poolSetback // by node; only run uses it
}

// poolSetback is why no volumes are made on a node for a while.
type poolSetback struct {
	n     int // tries in a row that failed
	until time.Time
}

func newVolumePool(s *Scheduler) *volumePool {
	return &volumePool{s: s, nudge: make(chan struct{}, 1), held: map[string]bool{}, setbacks: map[string]poolSetback{}}
}

// list returns the ready volumes by node that this replica is not yet claiming.
func (p *volumePool) list(ctx context.Context) (map[string][]*registry.PooledVolume, error) {
	template := p.s.template.Load()
	if template == nil || p.s.opts.VolumePool == 0 {
		return nil, nil
	}
	all, err := p.s.store.PooledVolumes(ctx)
	if err != nil {
		return nil, err
	}
	owner := template.Owner().String()
	p.mu.Lock()
	defer p.mu.Unlock()
	byNode := map[string][]*registry.PooledVolume{}
	for _, v := range all {
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
	poolEvery      = 10 * time.Second
	poolBackoff    = 5 * time.Second // the first wait after a failure; it doubles
	poolBackoffMax = 5 * time.Minute
	poolPending    = 250 * time.Millisecond
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
	// Read after the entries: a volume that an entry has an id of was there before.
	volumes := map[string]*cluster.Volume{}
	if len(entries) > 0 {
		all, err := p.s.cluster.Volumes(ctx)
		if err != nil {
			return false, err
		}
		for _, v := range all {
			volumes[v.Name] = v
		}
	}
	template := p.s.template.Load()
	owner, params := template.Owner().String(), template.Owner().Params()
	count, ready, now := map[string]int{}, 0, time.Now()
	for _, v := range entries {
		node, known := p.s.cluster.Node(v.NodeID)
		silent, there := !known || node.Down, volumes[registry.JobID(v.EngineID)]
		switch {
		case v.Owner != owner || silent || count[v.NodeID] >= p.s.opts.VolumePool, v.Ready() && (there == nil || there.ID != v.VolumeID):
			// A node that is gone took its volumes with it; one that comes back
			// finds them deleted. And a hand may have deleted one.
			if derr := p.discard(ctx, v); derr != nil && !silent {
				err = errors.Join(err, derr)
			}
			continue
		case v.Ready():
			ready++
		case now.Before(p.setbacks[v.NodeID].until):
		default:
			noted, nerr := p.noteReady(ctx, v, there)
			if err = errors.Join(err, p.note(v.NodeID, nerr)); noted {
				ready++
			} else {
				pending = pending || nerr == nil
			}
		}
		count[v.NodeID]++
	}
	p.ready.Store(int64(ready))
	for _, node := range p.s.cluster.Nodes() {
		if !node.Eligible || !node.Drivers[string(p.s.opts.Job.Driver)] {
			continue
		}
		for n := count[node.ID]; n < p.s.opts.VolumePool && !now.Before(p.setbacks[node.ID].until); n++ {
			v := &registry.PooledVolume{EngineID: p.s.newEngineID(), NodeID: node.ID, Owner: owner}
			if err := p.s.store.PutPooledVolume(ctx, v); err != nil {
				return pending, err
			}
			fault.Hit(pointPoolNoted)
			_, cerr := p.s.cluster.EnsureVolume(ctx, registry.JobID(v.EngineID), v.NodeID, params)
			if err = errors.Join(err, p.note(node.ID, cerr)); cerr != nil {
				break
			}
			pending = true
		}
	}
	return pending, err
}

// note keeps a node on which something failed from being tried for a while, which
// doubles.
func (p *volumePool) note(nodeID string, err error) error {
	if err == nil {
		delete(p.setbacks, nodeID)
		return nil
	}
	b := p.setbacks[nodeID]
	p.setbacks[nodeID] = poolSetback{b.n + 1, time.Now().Add(Backoff{Base: poolBackoff, Max: poolBackoffMax}.after(b.n))}
	return fmt.Errorf("node %s: %w", nodeID, err)
}

// noteReady records the id of a volume that became usable, and says whether it
// has; one that a crash left without a volume gets it now.
func (p *volumePool) noteReady(ctx context.Context, entry *registry.PooledVolume, v *cluster.Volume) (bool, error) {
	if v == nil {
		_, err := p.s.cluster.EnsureVolume(ctx, registry.JobID(entry.EngineID), entry.NodeID, p.s.template.Load().Owner().Params())
		return false, err
	}
	if !v.Ready {
		return false, nil
	}
	full, err := p.s.cluster.Volume(ctx, v.ID)
	if err != nil {
		return false, err
	}
	entry.VolumeID, entry.Path = full.ID, full.Path
	err = p.s.store.PutPooledVolume(ctx, entry)
	return err == nil, err
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
