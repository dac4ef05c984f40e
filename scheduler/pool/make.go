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

// make writes an entry and begins to create its volume: its engine_id is new, so no volume
// has that name.
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

// poolPatience is how long the oldest pending volume of a node delays the others: a node
// reports everything that it has created within 10 s (measured).
const poolPatience = 30 * time.Second

// noteReady records the volumes that became usable, and returns their number. For each node
// it first checks the oldest pending volume, and before it those that a crash left without
// an id: while that one is not ready, the others hardly are.
func (p *Volumes) noteReady(waiting []*registry.PooledVolume, note func(*registry.PooledVolume) (ready bool, err error)) (noted int, err error) {
	slices.SortStableFunc(waiting, func(a, b *registry.PooledVolume) int { return p.beganAs(a).at.Compare(p.beganAs(b).at) })
	first := map[string]*registry.PooledVolume{}
	for _, v := range waiting {
		if first[v.NodeID] == nil {
			first[v.NodeID] = v
		}
	}
	var mu sync.Mutex
	later := map[string]bool{} // nodes whose other volumes are not checked now
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

// note records the id of a volume, if it is usable now.
func (p *Volumes) note(ctx context.Context, entry *registry.PooledVolume, params map[string]string) (ready bool, err error) {
	id := p.beganAs(entry).id
	if id == "" {
		v, err := p.d.Nomad.EnsureVolume(ctx, engine.JobID(entry.EngineID), entry.NodeID, params)
		if err != nil {
			p.began(entry, "") // from now on the others of its node are checked first
			return false, err
		}
		id = v.ID
		p.began(entry, id)
	}
	v, err := p.d.Nomad.Volume(ctx, id)
	if errors.Is(err, cluster.ErrNotFound) { // it was deleted manually, and is created again
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

// forget drops what was begun for entries that no longer wait.
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

// began records the volume of an entry that is to become ready; "": it has none.
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

// discard removes an entry from the pool and deletes its volume. The entry is removed
// first, so that nobody can claim what is being deleted. If the deletion fails, the volume
// is an empty orphan.
func (p *Volumes) discard(ctx context.Context, v *registry.PooledVolume) error {
	if err := p.d.Store.DeletePooledVolume(ctx, v); err != nil {
		if errors.Is(err, registry.ErrConflict) {
			return nil // it was claimed
		}
		return err
	}
	fault.Hit(PointDiscarded)
	return p.d.Nomad.DeleteVolumes(ctx, engine.JobID(v.EngineID))
}
