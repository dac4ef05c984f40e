package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Grave is what is left of a destroyed engine whose volume could not be deleted: its
// node was silent, Nomad does not know the volume any more, or a container of the
// engine may run.
type Grave struct {
	EngineID string `json:"engine_id"`
	NodeID   string `json:"node_id"`
	VolumeID string `json:"volume_id"`
	// VolumeName is the volume's name where that is not JobID, and VolumePath its
	// directory on the node.
	VolumeName string `json:"volume_name,omitempty"`
	VolumePath string `json:"volume_path,omitempty"`
	// Unproven: a container of the engine may run, so the volume is not deleted before
	// it is proved on the node that none does.
	Unproven bool `json:"unproven,omitempty"`
	// Whose engine it was, and when it was destroyed.
	ProductID string    `json:"product_id,omitempty"`
	UserID    string    `json:"user_id,omitempty"`
	Since     time.Time `json:"since,omitzero"`

	Index uint64 `json:"-"`
}

// Volume is the name of the volume.
func (g *Grave) Volume() string { return cmp.Or(g.VolumeName, JobID(g.EngineID)) }

func (s *Store) graveKey(engineID string) string { return s.prefix + "graves/" + engineID }

// Graves lists them all. Those that cannot be read are returned beside the others.
func (s *Store) Graves(ctx context.Context) ([]*Grave, []*Unreadable, error) {
	pairs, err := s.list(ctx, "graves/")
	if err != nil {
		return nil, nil, err
	}
	graves, unreadable := decodeEach(pairs, func(g *Grave, index uint64) { g.Index = index })
	return graves, unreadable, nil
}

// DeleteGrave forgets a grave whose volume is gone, as the leader.
func (s *Store) DeleteGrave(ctx context.Context, g *Grave) error {
	ops, err := s.led(deleteAt(s.graveKey(g.EngineID), g.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// UpdateGrave writes a grave that was read. ErrConflict: it was changed or emptied
// meanwhile.
func (s *Store) UpdateGrave(ctx context.Context, g *Grave) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.graveKey(g.EngineID), Value: encode(g), Index: g.Index})
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}

// Bury forgets a grave for good, whatever became of its volume. ErrNotFound:
// there is no such grave.
func (s *Store) Bury(ctx context.Context, g *Grave) error {
	ops, err := s.fenced(deleteAt(s.graveKey(g.EngineID), g.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	if err = s.sessionOr(failed, err); errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoSession) {
		return fmt.Errorf("%w: grave: %w", ErrNotFound, err) // it was emptied meanwhile
	}
	return err
}
