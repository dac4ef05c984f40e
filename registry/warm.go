package registry

import (
	"context"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// CreateWarm writes the row of a new warm engine, as the leader, and removes its pooled
// volume, if it has one, from the pool. ErrConflict: the volume was claimed by another
// call, or this replica does not lead.
func (s *Store) CreateWarm(ctx context.Context, e *engine.Row, pooled *PooledVolume) error {
	if err := engine.CheckMove(engine.Gone, e.State); err != nil {
		return err
	}
	rowKey, value := s.engineKey(e.ProductID, e.UserID), encode(e)
	ops, err := s.led(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value},
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
	)
	if err != nil {
		return err
	}
	follows, err := s.followed()
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, append(append(ops, follows), s.takePooled(pooled)...))
	if err != nil {
		return err
	}
	s.written(e, value, results)
	return nil
}

// WarmBackoff is why no warm engines of a kind, identified by its fingerprint, are created
// for a while.
type WarmBackoff struct {
	Fingerprint string `json:"fingerprint"`
	// Attempts is the number of successive failures; 0: none failed, but warm engines were
	// preempted.
	Attempts int    `json:"attempts"`
	Error    string `json:"error"` // for an admin
	// RetryAt is when the next ones may be created.
	RetryAt time.Time `json:"retry_at"`

	// Index is the record's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

const warmBackoffsBelow = "warm-setbacks/"

// WarmBackoffs reads all backoffs, by fingerprint. One that cannot be read has no effect.
func (s *Store) WarmBackoffs(ctx context.Context) (map[string]*WarmBackoff, error) {
	pairs, err := s.list(ctx, warmBackoffsBelow)
	if err != nil {
		return nil, err
	}
	backoffs := make(map[string]*WarmBackoff, len(pairs))
	for _, pair := range pairs {
		b, err := decode[WarmBackoff](pair)
		if err != nil || b.Fingerprint != base(pair.Key) {
			b = &WarmBackoff{Fingerprint: base(pair.Key)}
		}
		b.Index = pair.ModifyIndex
		backoffs[b.Fingerprint] = b
	}
	return backoffs, nil
}

// PutWarmBackoff writes a record by check-and-set at b.Index (0: a new one). ErrConflict:
// it has changed.
func (s *Store) PutWarmBackoff(ctx context.Context, b *WarmBackoff) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.prefix + warmBackoffsBelow + b.Fingerprint, Value: encode(b), Index: b.Index})
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}

// DeleteWarmBackoff deletes the record by check-and-set at b.Index. ErrConflict: it has
// changed.
func (s *Store) DeleteWarmBackoff(ctx context.Context, b *WarmBackoff) error {
	ops, err := s.fenced(deleteAt(s.prefix+warmBackoffsBelow+b.Fingerprint, b.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}
