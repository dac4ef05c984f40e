package registry

import (
	"context"
	"errors"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Rollout is what running engines are to have of the provider keys: those of a
// version of their secret in Vault, or newer ones. There is one record, kept
// when it is done.
type Rollout struct {
	TargetVersion int       `json:"target_version"`
	RequestedAt   time.Time `json:"requested_at"`
	// Failures is how many restarts in a row did not bring their engine back.
	Failures int `json:"failures,omitempty"`
	// Halted: too many did not; nothing more is restarted until it is asked for
	// again.
	Halted bool `json:"halted,omitempty"`

	Index uint64 `json:"-"`
}

func (s *Store) rolloutKey() string { return s.prefix + "provider-keys" }

// Rollout reads the record; a zero one when provider keys were never rolled out, or
// when the record cannot be read: then it is asked for again.
func (s *Store) Rollout(ctx context.Context) (*Rollout, error) {
	pair, err := s.get(ctx, s.rolloutKey())
	if err != nil || pair == nil {
		return &Rollout{}, err
	}
	r, err := decode[Rollout](pair)
	if err != nil {
		r = &Rollout{}
	}
	r.Index = pair.ModifyIndex
	return r, nil
}

// RequestRollout asks for a version, or for another try where the last one was
// halted. An older version than the one asked for before changes nothing.
func (s *Store) RequestRollout(ctx context.Context, version int, now time.Time) (*Rollout, error) {
	for {
		r, err := s.Rollout(ctx)
		if err != nil || r.Index > 0 && (version < r.TargetVersion || version == r.TargetVersion && !r.Halted) {
			return r, err
		}
		r.TargetVersion, r.RequestedAt, r.Failures, r.Halted = version, now.UTC(), 0, false
		ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.rolloutKey(), Value: encode(r), Index: r.Index})
		if err != nil {
			return nil, err
		}
		results, failed, err := s.txn(ctx, ops)
		switch {
		case err == nil:
			r.Index = indexOf(results, s.rolloutKey())
			return r, nil
		case !errors.Is(err, ErrConflict) || ctx.Err() != nil || errors.Is(s.sessionOr(failed, err), ErrNoSession):
			return nil, s.sessionOr(failed, err)
		}
	}
}

// UpdateRollout writes the record over the one read at r.Index, as the leader.
// ErrConflict: it changed, or this replica is not the leader.
func (s *Store) UpdateRollout(ctx context.Context, r *Rollout) error {
	ops, err := s.led(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.rolloutKey(), Value: encode(r), Index: r.Index})
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	if err != nil {
		return err
	}
	r.Index = indexOf(results, s.rolloutKey())
	return nil
}
