package registry

import (
	"context"
	"errors"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// PooledVolume is an empty host volume that waits for an engine. It is already named by the
// engine_id that it will have: an engine that claims it takes that id.
type PooledVolume struct {
	EngineID string `json:"engine_id"`
	NodeID   string `json:"node_id"`
	// VolumeID and Path are empty until the volume is ready, because the entry is written
	// before the volume is created.
	VolumeID string `json:"volume_id,omitempty"`
	Path     string `json:"path,omitempty"`
	// Owner is the user and mode that the volume was created for; engines that run as
	// another user cannot write to it.
	Owner string `json:"owner"`

	// Index is the entry's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

// Ready reports whether the volume can be claimed.
func (v *PooledVolume) Ready() bool { return v.VolumeID != "" }

const poolFolder = "pool/volumes/"

func (s *Store) pooledKey(nodeID, engineID string) string {
	return s.prefix + poolFolder + nodeID + "/" + engineID
}

// PooledVolumes lists the pool of all nodes. Entries that cannot be read are returned
// separately.
func (s *Store) PooledVolumes(ctx context.Context) ([]*PooledVolume, []*Unreadable, error) {
	return s.pooledBelow(ctx, poolFolder)
}

// PooledVolumesOn lists the pool of one node; "": of all nodes.
func (s *Store) PooledVolumesOn(ctx context.Context, nodeID string) ([]*PooledVolume, error) {
	below := poolFolder
	if nodeID != "" {
		below += nodeID + "/"
	}
	pool, _, err := s.pooledBelow(ctx, below)
	return pool, err
}

func (s *Store) pooledBelow(ctx context.Context, below string) (pool []*PooledVolume, unreadable []*Unreadable, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = s.each(consistent(ctx), below, func(at stored) error {
		v, err := decodeStored[PooledVolume](at)
		if err == nil && (v.EngineID != base(at.key) || !strings.HasSuffix(at.key, v.NodeID+"/"+v.EngineID)) {
			err = &Unreadable{Key: at.key, Index: at.index, Err: errors.New("registry: the entry names another volume")}
		}
		if u := asUnreadable(err); u != nil {
			unreadable = append(unreadable, u)
			return nil
		}
		if err != nil {
			return err
		}
		v.Index = at.index
		pool = append(pool, v)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return pool, unreadable, nil
}

// PutPooledVolume writes an entry by check-and-set at v.Index (0: a new one), as the
// leader. ErrConflict: it has changed, or this replica does not lead.
func (s *Store) PutPooledVolume(ctx context.Context, v *PooledVolume) error {
	key := s.pooledKey(v.NodeID, v.EngineID)
	ops, err := s.led(&consul.KVTxnOp{Verb: consul.KVCAS, Key: key, Value: encode(v), Index: v.Index})
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	if err != nil {
		return err
	}
	v.Index = indexOf(results, key)
	return nil
}

// DeletePooledVolume deletes the entry by check-and-set at v.Index, as the leader.
func (s *Store) DeletePooledVolume(ctx context.Context, v *PooledVolume) error {
	ops, err := s.led(deleteAt(s.pooledKey(v.NodeID, v.EngineID), v.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

func (s *Store) takePooled(pooled *PooledVolume) consul.KVTxnOps {
	if pooled == nil {
		return nil
	}
	return deleteAt(s.pooledKey(pooled.NodeID, pooled.EngineID), pooled.Index)
}
