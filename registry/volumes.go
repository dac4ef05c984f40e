package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// UnreachableVolume is the volume of a destroyed engine that could not be deleted yet,
// because its node did not respond, Nomad no longer knows the volume, or a container of the
// engine may run.
type UnreachableVolume struct {
	EngineID string `json:"engine_id"`
	NodeID   string `json:"node_id"`
	VolumeID string `json:"volume_id"`
	// VolumeName is the volume's name if it is not JobID, and VolumePath its directory on
	// the node.
	VolumeName string `json:"volume_name,omitempty"`
	VolumePath string `json:"volume_path,omitempty"`
	// Former: the engine left it before it was destroyed, for a brain on another node.
	Former bool `json:"former,omitempty"`
	// Unproven: a container of the engine may run, so the volume is not deleted before it
	// is proved on the node that none does.
	Unproven bool `json:"unproven,omitempty"`
	// Left is why the last attempt to delete it failed, for an admin.
	Left string `json:"left,omitempty"`
	// ProductID and UserID are the engine's owner, and Since is when it was destroyed.
	ProductID string    `json:"product_id,omitempty"`
	UserID    string    `json:"user_id,omitempty"`
	Since     time.Time `json:"since,omitzero"`

	Index uint64 `json:"-"`
}

// Volume returns the name of the volume.
func (g *UnreachableVolume) Volume() string { return cmp.Or(g.VolumeName, engine.JobID(g.EngineID)) }

func (s *Store) unreachableVolumeKey(g *UnreachableVolume) string {
	key := s.prefix + "graves/" + g.EngineID
	if g.Former { // an engine may have several
		key += "." + g.VolumeID
	}
	return key
}

// UnreachableVolumes lists all unreachable volumes. Those that cannot be read are returned
// separately.
func (s *Store) UnreachableVolumes(ctx context.Context) ([]*UnreachableVolume, []*Unreadable, error) {
	pairs, err := s.list(ctx, "graves/")
	if err != nil {
		return nil, nil, err
	}
	unreachable, unreadable := decodeEach(pairs, func(g *UnreachableVolume, index uint64) { g.Index = index })
	return unreachable, unreadable, nil
}

// DeleteUnreachableVolume deletes the entry of a deleted volume, as the leader.
func (s *Store) DeleteUnreachableVolume(ctx context.Context, g *UnreachableVolume) error {
	ops, err := s.led(deleteAt(s.unreachableVolumeKey(g), g.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// UpdateUnreachableVolume writes an unreachable volume that was read. ErrConflict: it has
// changed or was removed meanwhile.
func (s *Store) UpdateUnreachableVolume(ctx context.Context, g *UnreachableVolume) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.unreachableVolumeKey(g), Value: encode(g), Index: g.Index})
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}

// ForgetVolume deletes the entry of an unreachable volume, whatever happened to the volume.
// ErrNotFound: there is no such unreachable volume.
func (s *Store) ForgetVolume(ctx context.Context, g *UnreachableVolume) error {
	ops, err := s.fenced(deleteAt(s.unreachableVolumeKey(g), g.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	if err = s.sessionOr(failed, err); errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoSession) {
		return fmt.Errorf("%w: unreachable volume: %w", ErrNotFound, err) // it was deleted meanwhile
	}
	return err
}
