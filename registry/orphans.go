package registry

import (
	"context"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Orphan is the tombstone of what was found without a row: it is removed when it
// has stood here for long enough. It holds nothing that is not seen again.
type Orphan struct {
	EngineID  string    `json:"engine_id"`
	FirstSeen time.Time `json:"first_seen"`
	// Removing is when a leader began to remove it.
	Removing time.Time `json:"removing,omitzero"`

	Index uint64 `json:"-"`
}

func (s *Store) orphanKey(engineID string) string { return s.prefix + "orphans/" + engineID }

// Orphans lists the tombstones. One that cannot be read says nothing but its engine_id.
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

// PutOrphan writes a tombstone over the one read at o.Index (0: a new one), as
// the leader. ErrConflict: it changed, or this replica is not the leader.
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

// DeleteOrphan removes the tombstone read at o.Index, as the leader.
func (s *Store) DeleteOrphan(ctx context.Context, o *Orphan) error {
	ops, err := s.led(deleteAt(s.orphanKey(o.EngineID), o.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// Held says whether anything in the registry has an engine_id: a pool entry, a
// row, an unreachable volume or a quarantine, looked for in the order in which an id passes
// through them.
func (s *Store) Held(ctx context.Context, engineID string) (bool, error) {
	pooled, err := s.PoolIDs(ctx)
	if err != nil || pooled[engineID] {
		return pooled[engineID], err
	}
	if indexed, err := s.indexed(ctx, engineID); err != nil || indexed {
		return indexed, err
	}
	for _, key := range []string{s.unreachableVolumeKey(engineID), s.quarantineKey(engineID)} {
		if pair, err := s.get(ctx, key); err != nil || pair != nil {
			return pair != nil, err
		}
	}
	return false, nil
}

// indexed says whether a row has an engine_id, by the index of these. A row that cannot
// be read may have it; an entry of the index whose row is gone says nothing.
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
		if row == nil { // or it went to another user meanwhile: then the index says so
			continue
		}
		e, err := s.decodeEngine(storedAt(row.Key, row.Value, row.ModifyIndex))
		return err != nil || e.EngineID == engineID, nil
	}
}

// PoolIDs are the engine_ids of everything that is pooled, ready or not.
func (s *Store) PoolIDs(ctx context.Context) (map[string]bool, error) {
	return s.idsBelow(ctx, "pool/")
}

// Engines reads every row. They are shared with the mirror, and not to be changed.
// It reads so that a leader of Consul's that was deposed without knowing it yet cannot
// answer. Rows that cannot be read are returned beside the others: "not among the rows"
// must never be taken for "gone".
func (s *Store) Engines(ctx context.Context) (rows []*engine.Row, unreadable []*Unreadable, err error) {
	// In one list, so that a row which moves is in it; with the time it takes.
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

// Quota is a product's count of engines as it stands in its key; -1: that is damaged.
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

// CorrectQuota sets a count that was read at q.Index, as the leader.
// ErrConflict: somebody counted meanwhile, or this replica is not the leader.
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
