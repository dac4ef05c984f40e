package registry

import (
	"context"
	"errors"

	consul "github.com/hashicorp/consul/api"
)

// Confirm asks Consul, by a consistent read, whether its registry is at least as new as
// what was seen before. An error: it is older, of which WentBack tells then, or that is not
// known.
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

// wentBack takes note of an answer that is older than what was seen: lists are the
// truth now. A server that has just lost the lead may answer from before, too; a
// registry that was restored says so by a consistent read.
func (m *Mirror) wentBack(ctx context.Context, now changes) {
	m.anew = true
	_ = m.Confirm(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = now
}

var errWentBack = errors.New("registry: it went back in time")

// changesSince blocks until a shard's last change is newer than index, or mirrorWait is
// over.
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

// changes is what Consul says of the keys below changes/.
type changes struct {
	shards map[string]uint64 // the index of each shard's last change
	index  uint64            // the highest of all, or of what was removed
}

// olderThan says whether c is of before another answer: the index of all is lower, or that
// of a shard is, which each change raises and nothing removes. A restored Consul goes on to
// count from where it was: its first write hides the index of all, and never that of every
// shard.
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
