package registry

import (
	"context"
	"fmt"
	"strings"

	"github.com/septemberai/orch/internal/link"
)

// readForward is a shared read that returns no row older than what this replica had seen
// before the read began: after a restore of Consul, an older row may name a key that was
// rotated since. Shared reads are consistent and begin after their caller arrived, so an
// older row proves that Consul went back in time. ErrWentBack.
func (s *Store) readForward(ctx context.Context, tenant string, keys ...string) (map[string]stored, error) {
	seen := make([]uint64, len(keys))
	for i, key := range keys {
		seen[i] = s.seenRow(key)
	}
	found, err := s.shared.read(ctx, tenant, keys...)
	if err != nil {
		return nil, err
	}
	for i, key := range keys {
		switch is := found[key].index; {
		case is >= seen[i]:
		case is > 0:
			s.noteBack("a row", seen[i], is)
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ErrWentBack)
		default: // another replica has removed it, unless Consul went back
			if err := s.confirmForward(ctx); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// confirmForward is Mirror.Confirm within the time limit of one call.
func (s *Store) confirmForward(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(link.FailFast(ctx), callTimeout)
	defer cancel()
	return s.mirror.Confirm(ctx)
}

// seenRow returns the ModifyIndex of a row in the view; 0 if the view has no row at the key.
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
