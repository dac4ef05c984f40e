package registry

import (
	"context"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Orphan is the tombstone of an object without a row, which is removed after the tombstone
// has existed for the grace time. Everything else in it can be observed again.
type Orphan struct {
	EngineID  string    `json:"engine_id"`
	FirstSeen time.Time `json:"first_seen"`
	// Removing is when a leader began to remove it.
	Removing time.Time `json:"removing,omitzero"`

	Index uint64 `json:"-"`
}

func (s *Store) orphanKey(engineID string) string { return s.prefix + "orphans/" + engineID }

// Orphans lists the tombstones. Of one that cannot be read only the engine_id is set.
func (s *Store) Orphans(ctx context.Context) ([]*Orphan, error) {
	pairs, err := s.list(ctx, "orphans/")
	if err != nil {
		return nil, err
	}
	orphans, unreadable := decodeEach(pairs, func(o *Orphan, index uint64) { o.Index = index })
	for _, u := range unreadable {
		orphans = append(orphans, &Orphan{EngineID: u.Name(), Index: u.Index})
	}
	return orphans, nil
}

// PutOrphan writes a tombstone by check-and-set at o.Index (0: a new one), as the leader.
// ErrConflict: it has changed, or this replica does not lead.
func (s *Store) PutOrphan(ctx context.Context, o *Orphan) error {
	key := s.orphanKey(o.EngineID)
	ops, err := s.led(&consul.KVTxnOp{Verb: consul.KVCAS, Key: key, Value: encode(o), Index: o.Index})
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	if err != nil {
		return err
	}
	o.Index = indexOf(results, key)
	return nil
}

// DeleteOrphan deletes the tombstone by check-and-set at o.Index, as the leader.
func (s *Store) DeleteOrphan(ctx context.Context, o *Orphan) error {
	ops, err := s.led(deleteAt(s.orphanKey(o.EngineID), o.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// Held reports whether an engine_id is used in the registry: by a pool entry, a row, an
// unreachable volume or a quarantine. They are read in the order in which an id passes
// through them.
func (s *Store) Held(ctx context.Context, engineID string) (bool, error) {
	pooled, err := s.PoolIDs(ctx)
	if err != nil || pooled[engineID] {
		return pooled[engineID], err
	}
	if indexed, err := s.indexed(ctx, engineID); err != nil || indexed {
		return indexed, err
	}
	if left, err := s.list(ctx, "graves/"+engineID); err != nil || len(left) > 0 {
		return err == nil, err
	}
	pair, err := s.get(ctx, s.quarantineKey(engineID))
	return pair != nil, err
}

// indexed reports, by the index, whether a row has an engine_id. A row that cannot be read
// may have it; an entry whose row no longer exists does not count.
func (s *Store) indexed(ctx context.Context, engineID string) (bool, error) {
	for before := ""; ; {
		pair, err := s.get(ctx, s.engineIDKey(engineID))
		if err != nil || pair == nil || string(pair.Value) == before {
			return false, err
		}
		before = string(pair.Value)
		if !strings.HasPrefix(before, enginesBelow) {
			return false, nil
		}
		row, err := s.get(ctx, s.prefix+before)
		if err != nil {
			return false, err
		}
		if row == nil { // or it was claimed by another user meanwhile: then the index shows that
			continue
		}
		e, err := s.decodeEngine(storedAt(row.Key, row.Value, row.ModifyIndex))
		return err != nil || e.EngineID == engineID, nil
	}
}

// PoolIDs returns the engine_ids of all pool entries, ready or not.
func (s *Store) PoolIDs(ctx context.Context) (map[string]bool, error) {
	return s.idsBelow(ctx, "pool/")
}

// Engines reads all rows. They are shared with the mirror and must not be modified. The
// read is consistent, so that a Consul server that lost the lead without knowing it cannot
// respond. Rows that cannot be read are returned separately: a row that is not among the
// readable ones may still exist.
func (s *Store) Engines(ctx context.Context) (rows []*engine.Row, unreadable []*Unreadable, err error) {
	// They are read in one list, so that a row which moves is in it, with a long time
	// limit.
	ctx, cancel := context.WithTimeout(ctx, fleetTimeout)
	defer cancel()
	_, err = s.each(consistent(ctx), enginesBelow, func(v stored) error {
		e, err := s.row(v)
		if u := asUnreadable(err); u != nil {
			unreadable = append(unreadable, u)
			return nil
		}
		rows = append(rows, e)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return rows, unreadable, nil
}

// Quota is a product's count of engines, as stored; -1: the count is damaged.
type Quota struct {
	Count int
	Index uint64
}

// Quotas reads the counts of all products.
func (s *Store) Quotas(ctx context.Context) (map[string]Quota, error) {
	pairs, err := s.list(ctx, "quota/")
	if err != nil {
		return nil, err
	}
	quotas := make(map[string]Quota, len(pairs))
	for _, pair := range pairs {
		n, ok := countIn(pair.Value)
		if !ok {
			n = -1
		}
		quotas[base(pair.Key)] = Quota{n, pair.ModifyIndex}
	}
	return quotas, nil
}

// CorrectQuota sets a count by check-and-set at q.Index, as the leader. ErrConflict: it has
// changed meanwhile, or this replica does not lead.
func (s *Store) CorrectQuota(ctx context.Context, productID string, q Quota, count int) error {
	quota := s.quotaTurn(productID)
	defer quota.end()
	ops, err := s.led(s.setQuota(productID, count, q.Index))
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	quota.wrote(count, results)
	return err
}
