package registry

import (
	"context"
	"errors"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Rollout is the version of the provider keys, in Vault, that running engines must have at
// least. There is one record, which is kept after the rollout.
type Rollout struct {
	TargetVersion int       `json:"target_version"`
	RequestedAt   time.Time `json:"requested_at"`
	// Failures is the number of successive restarts after which the engine did not come
	// back.
	Failures int `json:"failures,omitempty"`
	// Halted: there were too many failures; nothing more is restarted until it is requested
	// again.
	Halted bool `json:"halted,omitempty"`

	Index uint64 `json:"-"`
}

func (s *Store) rolloutKey() string { return s.prefix + "provider-keys" }

// Rollout reads the record. It is zero if provider keys were never rolled out, or if the
// record cannot be read: then the rollout must be requested again.
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

// RequestRollout requests the rollout of a version, or resumes a halted one. It ignores a
// version older than the requested one.
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

// UpdateRollout writes the record by check-and-set at r.Index, as the leader. ErrConflict:
// it has changed, or this replica does not lead.
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
