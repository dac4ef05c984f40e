package registry

import (
	"context"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// CreateWarm writes the row of an engine that is to become a warm one, as the
// leader, and takes its pooled volume, if it has one, out of the pool.
// ErrConflict: the volume was taken by somebody else, or this replica does not
// lead.
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

// WarmBackoff is why no warm engines of a kind are made for a while. The kind is
// its fingerprint.
type WarmBackoff struct {
	Fingerprint string `json:"fingerprint"`
	// Attempts in a row that failed; 0: none did, and its engines were preempted.
	Attempts int    `json:"attempts"`
	Error    string `json:"error"` // fit for an admin to read
	// RetryAt is when the next ones may be made.
	RetryAt time.Time `json:"retry_at"`

	// Index is the record's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

const warmBackoffsBelow = "warm-setbacks/"

// WarmBackoffs reads all of them, by fingerprint. One that cannot be read holds nothing
// back.
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

// PutWarmBackoff writes a record over the one read at b.Index (0: a new one).
// ErrConflict: somebody else did.
func (s *Store) PutWarmBackoff(ctx context.Context, b *WarmBackoff) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.prefix + warmBackoffsBelow + b.Fingerprint, Value: encode(b), Index: b.Index})
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}

// DeleteWarmBackoff removes the record read at b.Index. ErrConflict: it changed.
func (s *Store) DeleteWarmBackoff(ctx context.Context, b *WarmBackoff) error {
	ops, err := s.fenced(deleteAt(s.prefix+warmBackoffsBelow+b.Fingerprint, b.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}
