package registry

import (
	"context"
	"errors"
	"fmt"

	consul "github.com/hashicorp/consul/api"
)

// WarmProduct owns the rows of warm engines: engines that run and wait for a
// user. It is no product: nobody has its key, it has no quota, and no product_id
// is as short.
const WarmProduct = "warm"

// CreateWarm writes the row of an engine that is to become a warm one, as the
// leader, and takes its pooled volume, if it has one, out of the pool.
// ErrConflict: the volume was taken by somebody else, or this replica does not
// lead.
func (s *Store) CreateWarm(ctx context.Context, e *Engine, pooled *PooledVolume) error {
	if err := checkMove(none, e.State); err != nil {
		return err
	}
	rowKey := s.engineKey(e.ProductID, e.UserID)
	ops, err := s.led(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: encode(e)},
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
	)
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, append(ops, s.takePooled(pooled)...))
	if err != nil {
		return err
	}
	e.Index, e.stored = indexOf(results, rowKey), e.State
	s.mirror.wrote(e)
	return nil
}

// ClaimWarm makes a warm engine a user's, in one transaction: the row that was
// read at warm.Index goes, e comes. The errors are those of Claim; ErrConflict
// is also that somebody else got this engine.
func (s *Store) ClaimWarm(ctx context.Context, p *Product, e, warm *Engine) error {
	if warm.ProductID != WarmProduct || warm.State != Running || warm.Op != nil || e.State != Running || e.EngineID != warm.EngineID {
		return fmt.Errorf("registry: %s cannot be claimed as a warm engine", warm.EngineID)
	}
	ops := append(deleteAt(s.engineKey(warm.ProductID, warm.UserID), warm.Index), s.changed(warm))
	err := s.claim(ctx, p, e, consul.KVSet, ops)
	if err == nil {
		s.mirror.erased(warm)
	}
	return err
}

func (s *Store) takePooled(pooled *PooledVolume) consul.KVTxnOps {
	if pooled == nil {
		return nil
	}
	return deleteAt(s.pooledKey(pooled.NodeID, pooled.EngineID), pooled.Index)
}

// claim runs claimOnce until the quota count stands still.
func (s *Store) claim(ctx context.Context, p *Product, e *Engine, index consul.KVOp, source consul.KVTxnOps) error {
	unlock := s.lockQuota(p.ProductID)
	defer unlock()
	for {
		err := s.claimOnce(ctx, p, e, index, source)
		if !errors.Is(err, errQuotaMoved) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
