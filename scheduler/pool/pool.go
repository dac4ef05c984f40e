// Package pool keeps ready, empty volumes on every node, and hands them out.
package pool

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// Points at which a test can end or pause the process.
const (
	PointNoted     = "pool/noted"     // an entry is written, and its volume not created
	PointDiscarded = "pool/discarded" // an entry is deleted, and its volume is not
)

// Volumes keeps a few ready, empty host volumes on every node, because a new one takes 6 to
// 10 s to become usable. The leader fills the pool, and every replica claims from it. A
// volume is destroyed with its engine, never reused.
type Volumes struct {
	d       Deps
	ready   atomic.Int64
	byPool  atomic.Pointer[map[string]int] // ready volumes by node pool, when the leader last read them
	trigger chan struct{}                  // a volume was claimed

	volumes *reservations

	mu    sync.Mutex
	begun map[string]begunVolume // by engine_id, of entries that are to become ready
	lost  map[string]bool        // engine_ids whose volume the last pass of reconcile did not find

	// Only Run uses the fields below.
	backoffs map[string]nodeBackoff // by node
	quiet    quietPeriod
	took     time.Duration // time to read the entries
}

// begunVolume is a volume that its node has not reported yet.
type begunVolume struct {
	id string
	at time.Time
}

// NewVolumes returns a pool. It is filled while Run runs.
func NewVolumes(d Deps) *Volumes {
	return &Volumes{
		d: d, trigger: make(chan struct{}, 1), volumes: newReservations(),
		backoffs: map[string]nodeBackoff{}, begun: map[string]begunVolume{},
	}
}

// Read reads which volumes are ready on a node, unless some are known; "": on all nodes.
func (p *Volumes) Read(ctx context.Context, nodeID string) error {
	template, begun := p.d.Template(), time.Now()
	if template == nil || p.d.Size == 0 || p.volumes.knows(nodeID, begun) {
		return nil
	}
	listed, err := p.d.Store.PooledVolumesOn(ctx, nodeID)
	if err != nil {
		return err
	}
	owner := template.Owner().String()
	p.volumes.learn(nodeID, slices.DeleteFunc(listed, func(v *registry.PooledVolume) bool { return !v.Ready() || v.Owner != owner }), begun)
	return nil
}

// Hold reserves a ready volume of a node, as far as is known; nil: there is none. The
// caller must call Claimed or Release.
func (p *Volumes) Hold(nodeID string) *registry.PooledVolume { return p.volumes.hold(nodeID) }

// Release frees what Hold reserved, if anything.
func (p *Volumes) Release(v *registry.PooledVolume) { p.volumes.release(v) }

// Count returns how many ready, unclaimed volumes this replica last saw.
func (p *Volumes) Count() int { return int(p.ready.Load()) }

// ByNodePool returns how many ready, unclaimed volumes each node pool has, as the leader last
// read them; nil: this replica has not led yet.
func (p *Volumes) ByNodePool() map[string]int {
	if counts := p.byPool.Load(); counts != nil {
		return *counts
	}
	return nil
}

// Claimed records that an engine has a volume of the pool, if it has one, and triggers a
// refill if its node's pool is half empty.
func (p *Volumes) Claimed(v *registry.PooledVolume) {
	if v == nil || p.volumes.claimed(v, time.Now()) > p.d.Size/2 {
		return
	}
	select {
	case p.trigger <- struct{}{}:
	default:
	}
}

const (
	poolEvery = 10 * time.Second
	// poolShare is the time between two reads of all entries, as a multiple of the time of
	// one read, within poolPending and poolEvery, so that a large pool is read less often.
	// A pool that is half empty on some node is read at once.
	poolShare = 20
	// poolBackoff is the first wait after a failure, which doubles up to poolBackoffMax.
	poolBackoff    = 5 * time.Second
	poolBackoffMax = 5 * time.Minute
	// poolPending is the interval of checks of pending volumes, and how long claims are
	// collected before volumes are replaced.
	poolPending = 500 * time.Millisecond
	// poolQuiet is how long no volume of any node must be claimed before pools that are
	// more than half full are refilled. poolQuietEach is the pause after each node, per
	// allocation on it: for every change of a node's volumes, Nomad evaluates all jobs with
	// an allocation there (its shouldCreateNodeEval and createNodeEvals), so many changes
	// together cost as much as one. An evaluation takes 1 to 2 ms of the server's CPU. With
	// these pauses, however many nodes there are, pools that are hardly used take less than
	// a hundredth of the server's time, so that the p99 of users' calls does not show it.
	poolQuiet     = 5 * time.Second
	poolQuietEach = 300 * time.Millisecond
	// poolMakers is how many volumes are created or recorded concurrently.
	poolMakers = 8
)

// Run fills the pool, while this replica leads, until ctx ends.
func (p *Volumes) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := poolEvery
		if !p.d.Leads() {
			wait = time.Second
		} else {
			soon, err := p.fill(ctx)
			if err != nil && ctx.Err() == nil {
				p.d.Log.Warn("cannot fill the volume pool; retrying", "error", err)
				wait = poolBackoff
			}
			if soon {
				wait = min(max(poolPending, poolShare*p.took), poolEvery)
			}
		}
		select {
		case <-ctx.Done():
		case <-p.trigger:
			pause.For(ctx, poolPending)
		case <-time.After(wait):
		}
	}
}

// fill creates what is missing on each node, records what has become ready, and removes
// what no engine can use. It reports whether to check again soon, because volumes are
// pending or were claimed. A failure on one node does not affect other nodes.
func (p *Volumes) fill(ctx context.Context) (soon bool, err error) {
	began := time.Now()
	p.volumes.counting()
	entries, unreadable, err := p.d.Store.PooledVolumes(ctx)
	if err != nil {
		return false, err
	}
	for _, u := range unreadable { // its volume is found again as an orphan
		p.d.Log.Warn("an entry of the volume pool is damaged; deleting it", "entry", u.Key, "error", u.Err)
		if err := p.d.Store.DeleteUnreadable(ctx, u); err != nil && !errors.Is(err, registry.ErrConflict) {
			return false, err
		}
	}
	p.took = time.Since(began)
	gone, err := p.gone(ctx, entries)
	if err != nil {
		return false, err
	}
	template, now := p.d.Template(), time.Now()
	owner := template.Owner().String()
	count, ready, byPool := map[string]int{}, 0, map[string]int{}
	for _, node := range p.d.Nomad.Nodes() {
		byPool[node.Pool] += 0
	}
	var unready []*registry.PooledVolume
	for _, v := range entries {
		node, known := p.d.Nomad.Node(v.NodeID)
		silent := !known || node.Down
		switch {
		case v.Owner != owner || silent || count[v.NodeID] >= p.d.Size || gone[v.EngineID]:
			// A lost node took its volumes with it. If it comes back, they are deleted.
			if derr := p.discard(ctx, v); derr != nil && !silent {
				err = errors.Join(err, derr)
			}
			continue
		case v.Ready():
			ready++
			byPool[node.Pool]++
		default:
			unready = append(unready, v)
		}
		count[v.NodeID]++
	}
	p.ready.Store(int64(ready))
	p.byPool.Store(&byPool)
	p.volumes.counted(count)
	p.forget(unready)
	nodes := slices.DeleteFunc(p.d.Nomad.Nodes(), func(n cluster.Node) bool {
		return !n.TakesEngines(string(p.d.Driver)) || p.backingOff(n.ID, now)
	})
	taken := p.quiet.look(count, now)
	var missing []*registry.PooledVolume
	for _, node := range p.quiet.due(nodes, count, p.d.Size, now) {
		for n := count[node]; n < p.d.Size; n++ {
			missing = append(missing, &registry.PooledVolume{EngineID: p.d.NewID(), NodeID: node, Owner: owner})
		}
	}
	p.quiet.total += len(missing)
	params := template.Owner().Params()
	_, merr := p.each(missing, func(v *registry.PooledVolume) (bool, error) { return false, p.make(ctx, v, params) })
	waiting := slices.DeleteFunc(unready, func(v *registry.PooledVolume) bool { return p.backingOff(v.NodeID, now) })
	asked := len(waiting)
	noted, nerr := p.noteReady(waiting, func(v *registry.PooledVolume) (bool, error) { return p.note(ctx, v, params) })
	p.ready.Add(int64(noted))
	return taken || len(missing) > 0 || noted < asked, errors.Join(err, merr, nerr)
}

// Suspect records the entries, by engine_id, that may have lost their volume.
func (p *Volumes) Suspect(lost map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = lost
}

// gone returns the ready entries, by engine_id, whose volume no longer exists, because it
// may have been deleted manually. It only checks the suspected ones.
func (p *Volumes) gone(ctx context.Context, entries []*registry.PooledVolume) (map[string]bool, error) {
	p.mu.Lock()
	lost := p.lost
	p.lost = nil
	p.mu.Unlock()
	gone := map[string]bool{}
	for _, v := range entries {
		if !lost[v.EngineID] || !v.Ready() {
			continue
		}
		_, err := p.d.Nomad.Volume(ctx, v.VolumeID)
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			gone[v.EngineID] = true
		case err != nil:
			return nil, err
		}
	}
	return gone, nil
}
