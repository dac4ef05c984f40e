package registry

import (
	"context"
	"errors"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// PooledVolume is an empty host volume that waits for an engine. It is already
// named after the engine_id it will have: to claim it is to take that id.
type PooledVolume struct {
	EngineID string `json:"engine_id"`
	NodeID   string `json:"node_id"`
	// VolumeID and Path are empty until the volume is ready: the row comes
	// before the resource.
	VolumeID string `json:"volume_id,omitempty"`
	Path     string `json:"path,omitempty"`
	// Owner says which user and mode the volume was made for; engines that run
	// as another cannot write to it.
	Owner string `json:"owner"`

	// Index is the entry's ModifyIndex in Consul.
	Index uint64 `json:"-"`
}

// Ready says whether the volume can be claimed.
func (v *PooledVolume) Ready() bool { return v.VolumeID != "" }

const poolFolder = "pool/volumes/"

func (s *Store) pooledKey(nodeID, engineID string) string {
	return s.prefix + poolFolder + nodeID + "/" + engineID
}

// PooledVolumes lists the pool, on all nodes. Entries that cannot be read are returned
// beside the others.
func (s *Store) PooledVolumes(ctx context.Context) ([]*PooledVolume, []*Unreadable, error) {
	return s.pooledBelow(ctx, poolFolder)
}

// PooledVolumesOn lists the pool of one node; "": of all.
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

// PutPooledVolume writes an entry over the one read at v.Index (0: a new one),
// as the leader. ErrConflict: it changed, or this replica is not the leader.
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

// DeletePooledVolume removes the entry read at v.Index, as the leader.
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
