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

	mu    sync.Mutex
	left  map[string]int          // by node: the entries when they were last read, less what this replica claimed since
	known map[string]readyVolumes // by node
	held  map[string]bool         // engine_ids that this replica is about to claim
	begun map[string]begunVolume  // by engine_id, of entries that are to become ready

	// Only run uses these. By node:
	levels   map[string]poolLevel
	setbacks map[string]poolSetback
	took     time.Duration // to read the entries
	compare  time.Time     // when the entries are to be compared with Nomad's volumes again
}

// begunVolume is a volume that its node has not reported yet.
type begunVolume struct {
	id string
	at time.Time
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
		s: s, nudge: make(chan struct{}, 1), left: map[string]int{}, known: map[string]readyVolumes{}, held: map[string]bool{},
		levels: map[string]poolLevel{}, setbacks: map[string]poolSetback{}, begun: map[string]begunVolume{},
	}
}

// readyVolumes are the volumes of a node that can be claimed, as they were read.
type readyVolumes struct {
	volumes []*registry.PooledVolume
	owner   string
	at      time.Time
}

// poolKnown is how long what was read of a node's pool is handed out from. It needs
// not be the newest: a volume that another replica has taken is refused by the
// claim, and then the pool is read again.
const poolKnown = 10 * time.Second

// read reads which volumes are ready on a node, unless some are known; with "" on
// all nodes.
func (p *volumePool) read(ctx context.Context, nodeID string) error {
	template := p.s.template.Load()
	if template == nil || p.s.opts.VolumePool == 0 {
		return nil
	}
	owner, now := template.Owner().String(), time.Now()
	p.mu.Lock()
	known := p.known[nodeID]
	p.mu.Unlock()
	if len(known.volumes) > 0 && known.owner == owner && now.Sub(known.at) < poolKnown {
		return nil
	}
	listed, err := p.s.store.PooledVolumesOn(ctx, nodeID)
	if err != nil {
		return err
	}
	byNode := map[string][]*registry.PooledVolume{nodeID: nil}
	for _, v := range shuffled(listed) {
		if v.Ready() && v.Owner == owner {
			byNode[v.NodeID] = append(byNode[v.NodeID], v)
		}
	}
	delete(byNode, "")
	p.mu.Lock()
	defer p.mu.Unlock()
	for node, volumes := range byNode {
		p.known[node] = readyVolumes{volumes, owner, now}
	}
	return nil
}

// hold takes one of the volumes that are known of a node, so that the provisions
// of this replica do not race each other for one; nil: there is none. Its holder
// says how it went by claimed or release.
func (p *volumePool) hold(nodeID string) *registry.PooledVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[nodeID]
	for len(known.volumes) > 0 {
		v := known.volumes[0]
		known.volumes = known.volumes[1:]
		p.known[nodeID] = known
		if !p.held[v.EngineID] {
			p.held[v.EngineID] = true
			return v
		}
	}
	return nil
}

// release gives up what hold took, if it took one: perhaps another replica has it,
// so what is known of its node is forgotten.
func (p *volumePool) release(v *registry.PooledVolume) {
	if v == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, v.EngineID)
	delete(p.known, v.NodeID)
}

// claimed says that an engine has what hold took, if it took one, and asks for a
// refill when its node's pool is half empty.
func (p *volumePool) claimed(v *registry.PooledVolume) {
	if v == nil {
		return
	}
	p.mu.Lock()
	delete(p.held, v.EngineID)
	p.left[v.NodeID]--
	due := p.left[v.NodeID] <= p.s.opts.VolumePool/2
	p.mu.Unlock()
	if !due {
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
	// between two readings, from poolPending to poolEvery: no more than a fiftieth of
	// the time goes there, whatever the size of the fleet.
	poolShare = 50
	// poolBackoff is the first wait after a failure, which doubles up to
	// poolBackoffMax.
	poolBackoff    = 5 * time.Second
	poolBackoffMax = 5 * time.Minute
	// poolCompare is how often the entries are compared with Nomad's volumes at most,
	// all of which are read for that: a hand may have deleted one.
	poolCompare = 30 * time.Second
	// poolPending is between two looks at volumes that are to become ready, and
	// how long claims are gathered before they are made good.
	poolPending = 500 * time.Millisecond
	// poolQuiet is how long a node's pool stays as it is, while more than half of
	// it is left, before it is filled up, at least, and poolQuietEach so much for
	// each allocation there: for every change of a node's volumes Nomad evaluates
	// all jobs that have an allocation there (its shouldCreateNodeEval and
	// createNodeEvals), so many at a time cost as much as one. An evaluation takes
	// 1 to 2 ms of the server's CPU: with poolQuietEach a node that is hardly used
	// costs it a fiftieth of a core at most.
	poolQuiet     = 5 * time.Second
	poolQuietEach = 100 * time.Millisecond
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
				wait = min(max(poolPending, poolShare*p.took), poolEvery)
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
	began := time.Now()
	entries, err := p.s.store.PooledVolumes(ctx)
	if err != nil {
		return false, err
	}
	p.took = time.Since(began)
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
	p.mu.Lock()
	p.left = maps.Clone(count)
	p.mu.Unlock()
	var missing []*registry.PooledVolume
	for _, node := range p.s.cluster.Nodes() {
		if !node.Eligible || !node.Drivers[string(p.s.opts.Job.Driver)] || p.setBack(node.ID, now) {
			continue
		}
		pending = pending || count[node.ID] < p.s.opts.VolumePool
		if !p.due(node, count[node.ID], now) {
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
	began := time.Now()
	if len(entries) == 0 || began.Before(p.compare) {
		return nil, nil
	}
	// Read after the entries: a volume that an entry has an id of was there before.
	all, err := p.s.cluster.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	p.compare = time.Now().Add(max(poolCompare, poolShare*time.Since(began)))
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
func (p *volumePool) due(node cluster.Node, count int, now time.Time) bool {
	level, known := p.levels[node.ID]
	if !known || level.count != count {
		level = poolLevel{count, now}
		p.levels[node.ID] = level
	}
	return count <= p.s.opts.VolumePool/2 || now.Sub(level.since) >= max(poolQuiet, time.Duration(node.Allocs)*poolQuietEach)
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

// noteReady records the ids of volumes that became usable, finishing those that a
// crash left without one. A node reports all that it has made: where the one that
// was begun first is not ready, the others are not asked for.
func (p *volumePool) noteReady(ctx context.Context, waiting []*registry.PooledVolume, params map[string]string) (noted int, err error) {
	first := map[string]*registry.PooledVolume{}
	for _, v := range waiting {
		if earlier := first[v.NodeID]; earlier == nil || p.beganAs(v).at.Before(p.beganAs(earlier).at) {
			first[v.NodeID] = v
		}
	}
	note := func(v *registry.PooledVolume) (bool, error) { return p.note(ctx, v, params) }
	n, err := p.each(slices.Collect(maps.Values(first)), note)
	rest := slices.DeleteFunc(slices.Clone(waiting), func(v *registry.PooledVolume) bool { return !first[v.NodeID].Ready() || first[v.NodeID] == v })
	m, rerr := p.each(rest, note)
	return n + m, errors.Join(err, rerr)
}

// note records the id of a volume, if it is usable by now.
func (p *volumePool) note(ctx context.Context, entry *registry.PooledVolume, params map[string]string) (ready bool, err error) {
	id := p.beganAs(entry).id
	if id == "" {
		v, err := p.s.cluster.EnsureVolume(ctx, registry.JobID(entry.EngineID), entry.NodeID, params)
		if err != nil {
			return false, err
		}
		id = v.ID
		p.began(entry, id)
	}
	v, err := p.s.cluster.Volume(ctx, id)
	if errors.Is(err, cluster.ErrNotFound) { // deleted by hand
		p.began(entry, "")
		return false, nil
	}
	if err != nil || !v.Ready {
		return false, err
	}
	entry.VolumeID, entry.Path = v.ID, v.Path
	if err := p.s.store.PutPooledVolume(ctx, entry); err != nil {
		entry.VolumeID, entry.Path = "", ""
		return false, err
	}
	p.began(entry, "")
	return true, nil
}

// began notes the volume of an entry that is to become ready; "": none any more.
func (p *volumePool) began(v *registry.PooledVolume, volumeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if volumeID == "" {
		delete(p.begun, v.EngineID)
		return
	}
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
	p.began(v, "")
	if err := p.s.store.DeletePooledVolume(ctx, v); err != nil {
		if errors.Is(err, registry.ErrConflict) {
			return nil // somebody claimed it
		}
		return err
	}
	fault.Hit(pointPoolDiscarded)
	return p.s.cluster.DeleteVolumes(ctx, registry.JobID(v.EngineID))
}
