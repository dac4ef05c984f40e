package registry

import (
	"context"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Storm is the record that restarts are held back, so that a new leader does not report the
// same storm again.
type Storm struct {
	Began   time.Time `json:"began"`
	AuditID int64     `json:"audit_id"`

	Index uint64 `json:"-"`
}

func (s *Store) stormKey() string { return s.prefix + "storm" }

// Storm reads the record. ErrNotFound: restarts are not held back.
func (s *Store) Storm(ctx context.Context) (*Storm, error) {
	pair, err := s.get(ctx, s.stormKey())
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, fmt.Errorf("%w: storm", ErrNotFound)
	}
	st, err := decode[Storm](pair)
	if err != nil {
		return nil, err
	}
	st.Index = pair.ModifyIndex
	return st, nil
}

// PutStorm writes the record if there is none, as the leader.
func (s *Store) PutStorm(ctx context.Context, st *Storm) error {
	ops, err := s.led(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.stormKey(), Value: encode(st)})
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// DeleteStorm deletes the record that was read, as the leader.
func (s *Store) DeleteStorm(ctx context.Context, st *Storm) error {
	ops, err := s.led(deleteAt(s.stormKey(), st.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}
