package pool

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/registry"
)

// make notes an entry and begins to make its volume: its engine_id is new, so there
// is none of that name.
func (p *Volumes) make(ctx context.Context, v *registry.PooledVolume, params map[string]string) error {
	if err := p.d.Store.PutPooledVolume(ctx, v); err != nil {
		return err
	}
	fault.Hit(PointNoted)
	made, err := p.d.Nomad.CreateVolume(ctx, engine.JobID(v.EngineID), v.NodeID, params)
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
func (p *Volumes) noteReady(waiting []*registry.PooledVolume, note func(*registry.PooledVolume) (ready bool, err error)) (noted int, err error) {
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
func (p *Volumes) note(ctx context.Context, entry *registry.PooledVolume, params map[string]string) (ready bool, err error) {
	id := p.beganAs(entry).id
	if id == "" {
		v, err := p.d.Nomad.EnsureVolume(ctx, engine.JobID(entry.EngineID), entry.NodeID, params)
		if err != nil {
			p.began(entry, "") // the others of its node come first from now on
			return false, err
		}
		id = v.ID
		p.began(entry, id)
	}
	v, err := p.d.Nomad.Volume(ctx, id)
	if errors.Is(err, cluster.ErrNotFound) { // deleted manually: it is made anew
		p.began(entry, "")
		return false, nil
	}
	if err != nil || !v.Ready {
		return false, err
	}
	entry.VolumeID, entry.Path = v.ID, v.Path
	err = p.d.Store.PutPooledVolume(ctx, entry)
	return err == nil, err
}

// forget drops what was begun of entries that do not wait any more.
func (p *Volumes) forget(waiting []*registry.PooledVolume) {
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
func (p *Volumes) began(v *registry.PooledVolume, volumeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun[v.EngineID] = begunVolume{volumeID, time.Now()}
}

func (p *Volumes) beganAs(v *registry.PooledVolume) begunVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun[v.EngineID]
}

// discard takes an entry out of the pool and deletes its volume. The entry goes
// first: from then on nobody can claim what is being deleted. Where the
// deletion fails, the volume is an orphan that is empty.
func (p *Volumes) discard(ctx context.Context, v *registry.PooledVolume) error {
	if err := p.d.Store.DeletePooledVolume(ctx, v); err != nil {
		if errors.Is(err, registry.ErrConflict) {
			return nil // somebody claimed it
		}
		return err
	}
	fault.Hit(PointDiscarded)
	return p.d.Nomad.DeleteVolumes(ctx, engine.JobID(v.EngineID))
}
