package registry

import (
	"context"
	"fmt"
	"strings"
)

// readForward is a shared read that never returns rows older than those that this replica
// has seen: after a restore of Consul, an outdated row may name a key that was rotated
// since. A row that is older than the view's is read once more, because two reads may
// overtake each other. If it is still older, Consul went back in time. ErrWentBack.
func (s *Store) readForward(ctx context.Context, tenant string, keys ...string) (map[string]stored, error) {
	found, err := s.shared.read(ctx, tenant, keys...)
	if err != nil || !s.older(found, keys) {
		return found, err
	}
	if found, err = s.shared.read(ctx, tenant, keys...); err != nil || !s.older(found, keys) {
		return found, err
	}
	return found, s.confirmForward(ctx, found, keys)
}

// older reports whether this replica has seen a newer version of a row than the one found.
func (s *Store) older(found map[string]stored, keys []string) bool {
	for _, key := range keys {
		if found[key].index < s.seenRow(key) {
			return true
		}
	}
	return false
}

// confirmForward returns ErrWentBack if Consul went back in time. A missing row may just
// have been deleted by another replica.
func (s *Store) confirmForward(ctx context.Context, found map[string]stored, keys []string) error {
	for _, key := range keys {
		if is, was := found[key].index, s.seenRow(key); 0 < is && is < was {
			s.noteBack("a row", was, is)
			return fmt.Errorf("%w: %w", ErrUnavailable, ErrWentBack)
		}
	}
	return s.mirror.Confirm(ctx)
}

// seenRow returns the ModifyIndex of a row in the view; 0: the view has none with this key.
func (s *Store) seenRow(key string) uint64 {
	name, isRow := strings.CutPrefix(key, s.prefix+enginesBelow)
	if !isRow {
		return 0
	}
	if e := s.mirror.row(name); e != nil {
		return e.Index
	}
	return 0
}
