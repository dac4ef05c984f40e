package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Quarantined is an engine that is neither handed out nor removed until an admin decides.
// It may contain a user's memory, and its records contradict each other or name no user.
type Quarantined struct {
	EngineID string    `json:"engine_id"`
	Since    time.Time `json:"since"`
	Why      string    `json:"why"` // for an admin
	// What lists the parts that exist outside the registry.
	What []string `json:"what"`
	// ProductID and UserID are the owner according to a witness, if there is one.
	ProductID string `json:"product_id,omitempty"`
	UserID    string `json:"user_id,omitempty"`
	NodeID    string `json:"node_id,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0: a new one.
	Index uint64 `json:"-"`
}

const quarantineBelow = "quarantine/"

func (s *Store) quarantineKey(engineID string) string { return s.prefix + quarantineBelow + engineID }

// Quarantine lists all quarantined engines.
func (s *Store) Quarantine(ctx context.Context) ([]*Quarantined, error) {
	pairs, err := s.list(ctx, quarantineBelow)
	if err != nil {
		return nil, err
	}
	list := make([]*Quarantined, 0, len(pairs))
	for _, pair := range pairs {
		q, err := decode[Quarantined](pair)
		if err != nil {
			// A record that cannot be read still protects the engine.
			q = &Quarantined{EngineID: base(pair.Key), Why: "its record cannot be read"}
		}
		q.Index = pair.ModifyIndex
		list = append(list, q)
	}
	return list, nil
}

// PutQuarantined writes a record by check-and-set at q.Index (0: a new one). ErrConflict:
// it has changed, or exists already. ErrNoSession.
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

// DeleteQuarantined deletes the record by check-and-set at q.Index. ErrNotFound: it has
// changed or does not exist.
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
