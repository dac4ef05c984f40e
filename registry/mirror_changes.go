package registry

import (
	"context"
	"errors"

	consul "github.com/hashicorp/consul/api"
)

// Confirm checks, by a consistent read, that the registry in Consul is at least as new as
// what was seen before. An error means that it is older, which WentBack then reports, or
// that this is unknown.
func (m *Mirror) Confirm(ctx context.Context) error {
	m.mu.RLock()
	seen := m.seen
	m.mu.RUnlock()
	now, err := m.changesAt(ctx, consistent(ctx))
	if err != nil {
		return err
	}
	if was, is, older := now.olderThan(seen); older {
		m.store.noteBack("changes", was, is)
		return errWentBack
	}
	return nil
}

// wentBack handles a response that is older than what was seen: from now on lists replace
// all rows. A server that has just lost the lead may also return old data, so a consistent
// read must confirm that the registry was restored.
func (m *Mirror) wentBack(ctx context.Context, now changes) {
	m.anew = true
	_ = m.Confirm(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = now
}

var errWentBack = errors.New("registry: Consul went back in time")

// changesSince waits until a shard's last change is newer than index, at most mirrorWait.
func (m *Mirror) changesSince(ctx context.Context, index uint64) (changes, error) {
	return m.changesAt(ctx, &consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait})
}

func (m *Mirror) changesAt(ctx context.Context, how *consul.QueryOptions) (changes, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	const below = "changes/"
	now, err := changes{shards: map[string]uint64{}}, error(nil)
	now.index, err = m.store.each(how.WithContext(ctx), below, func(v stored) error {
		now.shards[v.key[len(m.store.prefix+below):]] = v.index
		return nil
	})
	return now, err
}

// changes is the state of the keys below changes/.
type changes struct {
	shards map[string]uint64 // the index of each shard's last change
	index  uint64            // the highest index, including removals
}

// olderThan reports whether c is older than another response: either the highest index is
// lower, or that of a shard, which each change increases and nothing removes. A restored
// Consul continues to count from its old index, so its first write can hide a lower highest
// index, but never the lower indexes of all shards.
func (c changes) olderThan(other changes) (was, is uint64, older bool) {
	if c.index < other.index {
		return other.index, c.index, true
	}
	for shard, at := range other.shards {
		if c.shards[shard] < at {
			return at, c.shards[shard], true
		}
	}
	return 0, 0, false
}
