package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// volumePool keeps a few ready, empty host volumes on every node, since a new
// one takes 6 to 10 s to become usable. The leader fills it; every replica
// claims from it. A volume is destroyed with its engine, never reused.
type volumePool struct {
	s     *Scheduler
	ready atomic.Int64
	nudge chan struct{} // a volume was claimed

	volumes *handout

	mu    sync.Mutex
	begun map[string]begunVolume // by engine_id, of entries that are to become ready
	lost  map[string]bool        // engine_ids whose volume the last pass of reconcile did not find

	// Only run uses these.
	setbacks map[string]poolSetback // by node
	lull     poolLull
	took     time.Duration // to read the entries
}

// begunVolume is a volume that its node has not reported yet.
type begunVolume struct {
	id string
	at time.Time
}

// poolLull is the time in which nobody takes volumes, when pools of which more than
// half is left are filled up, a few nodes after another.
type poolLull struct {
	total int       // entries at the last look
	since time.Time // of the last look that found fewer than the one before
	next  time.Time // when the next node may be filled up
}

// poolSetback is why no volumes are made on a node for a while.
type poolSetback struct {
	n     int // tries in a row that failed
	until time.Time
}

func newVolumePool(s *Scheduler) *volumePool {
	return &volumePool{
		s: s, nudge: make(chan struct{}, 1), volumes: newHandout(),
		setbacks: map[string]poolSetback{}, begun: map[string]begunVolume{},
	}
}

// read reads which volumes are ready on a node, unless some are known; with "" on
// all nodes.
func (p *volumePool) read(ctx context.Context, nodeID string) error {
	template, begun := p.s.template.Load(), time.Now()
	if template == nil || p.s.opts.VolumePool == 0 || p.volumes.knows(nodeID, begun) {
		return nil
	}
	listed, err := p.s.store.PooledVolumesOn(ctx, nodeID)
	if err != nil {
		return err
	}
	owner := template.Owner().String()
	p.volumes.learn(nodeID, slices.DeleteFunc(listed, func(v *registry.PooledVolume) bool { return !v.Ready() || v.Owner != owner }), begun)
	return nil
}

// claimed says that an engine has a volume, if it has one of the pool, and asks for
// a refill when its node's pool is half empty.
func (p *volumePool) claimed(v *registry.PooledVolume) {
	if v == nil || p.volumes.claimed(v, time.Now()) > p.s.opts.VolumePool/2 {
		return
	}
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

const (
	poolEvery = 10 * time.Second
	// poolShare is how many times as long as it takes to read all entries is left
	// between two readings, from poolPending to poolEvery, so that a large pool is read
	// less often; one that is half empty somewhere is read at once.
	poolShare = 20
	// poolBackoff is the first wait after a failure, which doubles up to
	// poolBackoffMax.
	poolBackoff    = 5 * time.Second
	poolBackoffMax = 5 * time.Minute
	// poolPending is between two looks at volumes that are to become ready, and
	// how long claims are gathered before they are made good.
	poolPending = 500 * time.Millisecond
	// poolQuiet is how long nobody takes a volume of any node before pools of which
	// more than half is left are filled up, and poolQuietEach how long the next node
	// waits after that for each allocation on the one before: for every change of a
	// node's volumes Nomad evaluates all jobs that have an allocation there (its
	// shouldCreateNodeEval and createNodeEvals), so many at a time cost as much as
	// one. An evaluation takes 1 to 2 ms of the server's CPU: however many nodes
	// there are, it is busy with pools that are hardly used for less than a hundredth
	// of the time, so that what users wait for at p99 does not tell of it.
	poolQuiet     = 5 * time.Second
	poolQuietEach = 300 * time.Millisecond
	// poolMakers is how many volumes are made, or noted, at a time.
	poolMakers = 8
)

// run fills the pool, while this replica leads, until ctx ends.
func (p *volumePool) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := poolEvery
		if p.s.Ready() != nil || !p.s.guard.ok() || !p.s.replica.Leader() {
			wait = time.Second
		} else {
			soon, err := p.fill(ctx)
			if err != nil && ctx.Err() == nil {
				p.s.log.Warn("cannot fill the volume pool; trying again", "error", err)
				wait = poolBackoff
			}
			if soon {
				wait = min(max(poolPending, poolShare*p.took), poolEvery)
			}
		}
		select {
		case <-ctx.Done():
		case <-p.nudge:
			pause.For(ctx, poolPending)
		case <-time.After(wait):
		}
	}
}

// fill makes what is missing on each node, notes what has become ready, and
// removes what no engine can use. It says whether to look again soon, since volumes
// are to become ready or some were taken. What fails on one node keeps no other from
// its volumes.
func (p *volumePool) fill(ctx context.Context) (soon bool, err error) {
	began := time.Now()
	p.volumes.counting()
	entries, unreadable, err := p.s.store.PooledVolumes(ctx)
	if err != nil {
		return false, err
	}
	for _, u := range unreadable { // its volume is found again as an orphan
		p.s.log.Warn("an entry of the volume pool is damaged; taking it away", "entry", u.Key, "error", u.Err)
		if err := p.s.store.DeleteUnreadable(ctx, u); movedOn(err) != nil {
			return false, err
		}
	}
	p.took = time.Since(began)
	gone, err := p.gone(ctx, entries)
	if err != nil {
		return false, err
	}
	template, now := p.s.template.Load(), time.Now()
	owner := template.Owner().String()
	count, ready := map[string]int{}, 0
	var unready []*registry.PooledVolume
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
		default:
			unready = append(unready, v)
		}
		count[v.NodeID]++
	}
	p.ready.Store(int64(ready))
	p.volumes.counted(count)
	p.forget(unready)
	nodes := slices.DeleteFunc(p.s.cluster.Nodes(), func(n cluster.Node) bool {
		return !n.Eligible || !n.Drivers[string(p.s.opts.Job.Driver)] || p.setBack(n.ID, now)
	})
	taken := p.lull.look(count, now)
	var missing []*registry.PooledVolume
	for _, node := range p.lull.due(nodes, count, p.s.opts.VolumePool, now) {
		for n := count[node]; n < p.s.opts.VolumePool; n++ {
			missing = append(missing, &registry.PooledVolume{EngineID: p.s.newEngineID(), NodeID: node, Owner: owner})
		}
	}
	p.lull.total += len(missing)
	params := template.Owner().Params()
	_, merr := p.each(missing, func(v *registry.PooledVolume) (bool, error) { return false, p.make(ctx, v, params) })
	waiting := slices.DeleteFunc(unready, func(v *registry.PooledVolume) bool { return p.setBack(v.NodeID, now) })
	asked := len(waiting)
	noted, nerr := p.noteReady(waiting, func(v *registry.PooledVolume) (bool, error) { return p.note(ctx, v, params) })
	p.ready.Add(int64(noted))
	return taken || len(missing) > 0 || noted < asked, errors.Join(err, merr, nerr)
}

// suspect notes the entries, by engine_id, that may have lost their volume.
func (p *volumePool) suspect(lost map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = lost
}

// gone are the ready entries, by engine_id, whose volume is not there any more: a hand
// may have deleted it. Only those that are suspected are asked for.
func (p *volumePool) gone(ctx context.Context, entries []*registry.PooledVolume) (map[string]bool, error) {
	p.mu.Lock()
	lost := p.lost
	p.lost = nil
	p.mu.Unlock()
	gone := map[string]bool{}
	for _, v := range entries {
		if !lost[v.EngineID] || !v.Ready() {
			continue
		}
		_, err := p.s.cluster.Volume(ctx, v.VolumeID)
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			gone[v.EngineID] = true
		case err != nil:
			return nil, err
		}
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
		p.setbacks[node] = poolSetback{b + 1, time.Now().Add(engine.Backoff{Base: poolBackoff, Max: poolBackoffMax}.After(b))}
		err = errors.Join(err, fmt.Errorf("node %s: %w", node, failed[node]))
	}
	return n, err
}

// setBack says whether a node is left alone for now.
func (p *volumePool) setBack(nodeID string, now time.Time) bool {
	return now.Before(p.setbacks[nodeID].until)
}

// look notes how many entries there are, by node, and says whether any were taken in
// the last poolQuiet.
func (l *poolLull) look(count map[string]int, now time.Time) (taken bool) {
	total := 0
	for _, n := range count {
		total += n
	}
	if total < l.total {
		l.since = now
	}
	l.total = total
	return now.Sub(l.since) < poolQuiet
}

// due are the ids of the nodes whose pools are to be filled up to a size now: all of
// those that are half empty, and in a lull the emptiest of the others.
func (l *poolLull) due(nodes []cluster.Node, count map[string]int, size int, now time.Time) (due []string) {
	slices.SortFunc(nodes, func(a, b cluster.Node) int { return count[a.ID] - count[b.ID] })
	for _, node := range nodes {
		switch n := count[node.ID]; {
		case n >= size:
		case n <= size/2:
			due = append(due, node.ID)
		case now.Sub(l.since) >= poolQuiet && !now.Before(l.next):
			due = append(due, node.ID)
			l.next = now.Add(time.Duration(node.Allocs) * poolQuietEach)
		}
	}
	return due
}

// make notes an entry and begins to make its volume: its engine_id is new, so there
// is none of that name.
func (p *volumePool) make(ctx context.Context, v *registry.PooledVolume, params map[string]string) error {
	if err := p.s.store.PutPooledVolume(ctx, v); err != nil {
		return err
	}
	fault.Hit(pointPoolNoted)
	made, err := p.s.cluster.CreateVolume(ctx, registry.JobID(v.EngineID), v.NodeID, params)
	if err == nil {
		p.began(v, made.ID)
	}
	return err
}

// poolPatience is how long the volume of a node that was begun first holds back the
// others: a node reports all that it has made, within 10 s (measured).
const poolPatience = 30 * time.Second

// noteReady notes the volumes that became usable, and says how many. Of each node the
// one that was begun first is asked for first, and those that a crash left without an
// id before it: while that is not ready, the others hardly are.
func (p *volumePool) noteReady(waiting []*registry.PooledVolume, note func(*registry.PooledVolume) (ready bool, err error)) (noted int, err error) {
	slices.SortStableFunc(waiting, func(a, b *registry.PooledVolume) int { return p.beganAs(a).at.Compare(p.beganAs(b).at) })
	first := map[string]*registry.PooledVolume{}
	for _, v := range waiting {
		if first[v.NodeID] == nil {
			first[v.NodeID] = v
		}
	}
	var mu sync.Mutex
	later := map[string]bool{} // nodes whose others are not asked for now
	n, err := p.each(slices.Collect(maps.Values(first)), func(v *registry.PooledVolume) (bool, error) {
		ready, err := note(v)
		mu.Lock()
		defer mu.Unlock()
		later[v.NodeID] = err != nil || !ready && time.Since(p.beganAs(v).at) < poolPatience
		return ready, err
	})
	rest := slices.DeleteFunc(waiting, func(v *registry.PooledVolume) bool { return later[v.NodeID] || first[v.NodeID] == v })
	m, rerr := p.each(rest, note)
	return n + m, errors.Join(err, rerr)
}

// note records the id of a volume, if it is usable by now.
func (p *volumePool) note(ctx context.Context, entry *registry.PooledVolume, params map[string]string) (ready bool, err error) {
	id := p.beganAs(entry).id
	if id == "" {
		v, err := p.s.cluster.EnsureVolume(ctx, registry.JobID(entry.EngineID), entry.NodeID, params)
		if err != nil {
			p.began(entry, "") // the others of its node come first from now on
			return false, err
		}
		id = v.ID
		p.began(entry, id)
	}
	v, err := p.s.cluster.Volume(ctx, id)
	if errors.Is(err, cluster.ErrNotFound) { // deleted by hand: it is made anew
		p.began(entry, "")
		return false, nil
	}
	if err != nil || !v.Ready {
		return false, err
	}
	entry.VolumeID, entry.Path = v.ID, v.Path
	err = p.s.store.PutPooledVolume(ctx, entry)
	return err == nil, err
}

// forget drops what was begun of entries that do not wait any more.
func (p *volumePool) forget(waiting []*registry.PooledVolume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	begun := make(map[string]begunVolume, len(waiting))
	for _, v := range waiting {
		if b, known := p.begun[v.EngineID]; known {
			begun[v.EngineID] = b
		}
	}
	p.begun = begun
}

// began notes the volume of an entry that is to become ready; "": it has none.
func (p *volumePool) began(v *registry.PooledVolume, volumeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun[v.EngineID] = begunVolume{volumeID, time.Now()}
}

func (p *volumePool) beganAs(v *registry.PooledVolume) begunVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun[v.EngineID]
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
