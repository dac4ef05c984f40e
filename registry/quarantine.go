package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Quarantined is an engine that nobody is given and nothing removes until an admin
// decides: it may hold somebody's memory, and what is known of it contradicts
// itself or names no user.
type Quarantined struct {
	EngineID string    `json:"engine_id"`
	Since    time.Time `json:"since"`
	Why      string    `json:"why"` // fit for an admin to read
	// What there is of it outside the registry, in words.
	What []string `json:"what"`
	// ProductID and UserID are whose it is, as far as a witness says.
	ProductID string `json:"product_id,omitempty"`
	UserID    string `json:"user_id,omitempty"`
	NodeID    string `json:"node_id,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0: a new one.
	Index uint64 `json:"-"`
}

const quarantineBelow = "quarantine/"

func (s *Store) quarantineKey(engineID string) string { return s.prefix + quarantineBelow + engineID }

// Quarantine lists them all.
func (s *Store) Quarantine(ctx context.Context) ([]*Quarantined, error) {
	pairs, err := s.list(ctx, quarantineBelow)
	if err != nil {
		return nil, err
	}
	list := make([]*Quarantined, 0, len(pairs))
	for _, pair := range pairs {
		q, err := decode[Quarantined](pair)
		if err != nil {
			// What cannot be read still keeps the engine from everything.
			q = &Quarantined{EngineID: base(pair.Key), Why: "its record cannot be read"}
		}
		q.Index = pair.ModifyIndex
		list = append(list, q)
	}
	return list, nil
}

// PutQuarantined writes a record over the one read at q.Index (0: a new one).
// ErrConflict: it changed, or is there already. ErrNoSession.
func (s *Store) PutQuarantined(ctx context.Context, q *Quarantined) error {
	key := s.quarantineKey(q.EngineID)
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: key, Value: encode(q), Index: q.Index})
	if err != nil {
		return err
	}
	results, failed, err := s.txn(ctx, ops)
	if err != nil {
		return s.sessionOr(failed, err)
	}
	q.Index = indexOf(results, key)
	return nil
}

// DeleteQuarantined removes the record read at q.Index. ErrNotFound: it changed or
// is gone.
func (s *Store) DeleteQuarantined(ctx context.Context, q *Quarantined) error {
	ops, err := s.fenced(deleteAt(s.quarantineKey(q.EngineID), q.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	if err = s.sessionOr(failed, err); errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoSession) {
		return fmt.Errorf("%w: quarantine of %s: %w", ErrNotFound, q.EngineID, err)
	}
	return err
}
