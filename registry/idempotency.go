package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// idempotencyTTL is how long a change's Idempotency-Key is kept (SPEC
// section 2).
const idempotencyTTL = 24 * time.Hour

// ErrKeyUsed says that the Idempotency-Key has a record already.
var ErrKeyUsed = errors.New("registry: idempotency key is used")

// Idempotency is the record of a change that carried an Idempotency-Key. It is made
// with the row of a provision, or with the operation in the row, in one transaction,
// and goes with a change that fails: errors are not kept.
type Idempotency struct {
	// Key is the SHA-256 of the caller's key; Body that of what it asked for.
	Key  string `json:"-"`
	Body string `json:"body"`

	UserID    string    `json:"user_id"`
	EngineID  string    `json:"engine_id"`
	CreatedAt time.Time `json:"created_at"`
	// URL is what the provision answered; empty while it is under way.
	URL string `json:"url,omitempty"`
	// Done: the change, which is no provision, succeeded.
	Done bool `json:"done,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0 when there is none yet.
	Index uint64 `json:"-"`
}

// Expired says whether the record is to be taken for none.
func (r *Idempotency) Expired(now time.Time) bool { return now.Sub(r.CreatedAt) > idempotencyTTL }

func (s *Store) idempotencyKey(productID, key string) string {
	return s.prefix + "idempotency/" + productID + "/" + key
}

// Idempotency reads a record. ErrNotFound: there is none. One that cannot be read has
// expired.
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

// recordOps are the operations that keep the record of e's change in step with its
// row: made with it, told its answer, or gone with its failure.
func (s *Store) recordOps(e *engine.Row) consul.KVTxnOps {
	r := e.Idempotency
	if r == nil {
		return nil
	}
	at := s.idempotencyKey(e.ProductID, r.Key)
	switch {
	case r.Fresh: // over an expired record, at the index that was read
		ops := consul.KVTxnOps{{Verb: consul.KVCAS, Key: at, Value: encode(recordOf(e, r)), Index: r.Expired}}
		if r.Replaces != "" {
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.idempotencyKey(e.ProductID, r.Replaces)})
		}
		return ops
	case e.Op != nil && e.Op.Undo == "":
		return nil // under way, as the record says
	case r.Succeeded(e):
		answered := recordOf(e, r)
		answered.URL, answered.Done = e.URL, r.Kind != ""
		e.Idempotency = nil
		return consul.KVTxnOps{{Verb: consul.KVSet, Key: at, Value: encode(answered)}}
	}
	e.Idempotency = nil
	return consul.KVTxnOps{{Verb: consul.KVDelete, Key: at}}
}

// recordOf is the record that a row's operation leaves.
func recordOf(e *engine.Row, r *engine.IdempotencyRef) *Idempotency {
	return &Idempotency{Key: r.Key, Body: r.Body, UserID: e.UserID, EngineID: e.EngineID, CreatedAt: r.CreatedAt}
}

// SweepIdempotency removes the records that have expired, or cannot be read, and returns
// how many it removed.
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
