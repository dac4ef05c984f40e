package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// idempotencyTTL is how long a change's Idempotency-Key is stored (docs/api.md).
const idempotencyTTL = 24 * time.Hour

// ErrKeyUsed means that the Idempotency-Key has a record already.
var ErrKeyUsed = errors.New("registry: idempotency key is used")

// Idempotency is the record of a change with an Idempotency-Key. It is created in the same
// transaction as the row of a provision, or as the operation in the row. It is deleted if
// the change fails, because errors are not stored.
type Idempotency struct {
	// Key is the SHA-256 of the caller's key, and Body that of the request.
	Key  string `json:"-"`
	Body string `json:"body"`

	UserID    string    `json:"user_id"`
	EngineID  string    `json:"engine_id"`
	CreatedAt time.Time `json:"created_at"`
	// URL is the result of the provision; empty while it is in progress.
	URL string `json:"url,omitempty"`
	// Done: the change, which is not a provision, has succeeded.
	Done bool `json:"done,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0 if it does not exist yet.
	Index uint64 `json:"-"`
}

// Expired reports whether the record no longer counts.
func (r *Idempotency) Expired(now time.Time) bool { return now.Sub(r.CreatedAt) > idempotencyTTL }

func (s *Store) idempotencyKey(productID, key string) string {
	return s.prefix + "idempotency/" + productID + "/" + key
}

// Idempotency reads a record. ErrNotFound: there is none. A record that cannot be read
// counts as expired.
func (s *Store) Idempotency(ctx context.Context, productID, key string) (*Idempotency, error) {
	pair, err := s.get(ctx, s.idempotencyKey(productID, key))
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, fmt.Errorf("%w: idempotency record", ErrNotFound)
	}
	r, err := decode[Idempotency](pair)
	if err != nil {
		r = &Idempotency{}
	}
	r.Key, r.Index = key, pair.ModifyIndex
	return r, nil
}

// recordOps returns the operations that keep the record of e's change consistent with its
// row: they create it, store its result, or delete it after a failure.
func (s *Store) recordOps(e *engine.Row) consul.KVTxnOps {
	r := e.Idempotency
	if r == nil {
		return nil
	}
	at := s.idempotencyKey(e.ProductID, r.Key)
	switch {
	case r.Fresh: // it replaces an expired record, at the index that was read
		ops := consul.KVTxnOps{{Verb: consul.KVCAS, Key: at, Value: encode(recordOf(e, r)), Index: r.Expired}}
		if r.Replaces != "" {
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.idempotencyKey(e.ProductID, r.Replaces)})
		}
		return ops
	case e.Op != nil && e.Op.Undo == "":
		return nil // in progress, as in the record
	case r.Succeeded(e):
		answered := recordOf(e, r)
		answered.URL, answered.Done = e.URL, r.Kind != ""
		e.Idempotency = nil
		return consul.KVTxnOps{{Verb: consul.KVSet, Key: at, Value: encode(answered)}}
	}
	e.Idempotency = nil
	return consul.KVTxnOps{{Verb: consul.KVDelete, Key: at}}
}

// recordOf returns the record that a row's operation leaves.
func recordOf(e *engine.Row, r *engine.IdempotencyRef) *Idempotency {
	return &Idempotency{Key: r.Key, Body: r.Body, UserID: e.UserID, EngineID: e.EngineID, CreatedAt: r.CreatedAt}
}

// SweepIdempotency deletes records that have expired or cannot be read, and returns their
// number.
func (s *Store) SweepIdempotency(ctx context.Context, now time.Time) (removed int, err error) {
	pairs, err := s.list(ctx, "idempotency/")
	if err != nil {
		return 0, err
	}
	for _, pair := range pairs {
		r, err := decode[Idempotency](pair)
		if err == nil && !r.Expired(now) {
			continue
		}
		if _, _, err := s.txn(ctx, deleteAt(pair.Key, pair.ModifyIndex)); err != nil && !errors.Is(err, ErrConflict) {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
