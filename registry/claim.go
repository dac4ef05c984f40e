package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Claim creates an engine's row and its index by id, and counts it in the product's quota.
// With a pooled volume, it also removes that from the pool. All this is one transaction,
// which succeeds only if the product's row has not changed since it was read.
//
// ErrExists: the user has a row. ErrQuota: the product is full. ErrConflict: the product's
// row has changed, or the pooled volume was claimed by another call; read again and retry.
// ErrMoved: the deployment's record has changed, and nothing is handed out until it was
// read again.
func (s *Store) Claim(ctx context.Context, p *engine.Product, e *engine.Row, pooled *PooledVolume) error {
	if err := engine.CheckMove(engine.Gone, e.State); err != nil {
		return err
	}
	return s.claim(ctx, p, e, consul.KVCAS, s.takePooled(pooled))
}

// ClaimWarm gives a warm engine to a user in one transaction: it deletes the row that was
// read at warm.Index, and writes e with the operation that changes the owner in its secret.
// The errors are those of Claim; ErrConflict may also mean that another call claimed this
// engine.
func (s *Store) ClaimWarm(ctx context.Context, p *engine.Product, e, warm *engine.Row) error {
	if warm.ProductID != engine.WarmProduct || warm.State != engine.Running || warm.Op != nil || e.State != engine.Provisioning || e.Op == nil || e.EngineID != warm.EngineID {
		return fmt.Errorf("registry: %s cannot be claimed as a warm engine", warm.EngineID)
	}
	ops := append(deleteAt(s.engineKey(warm.ProductID, warm.UserID), warm.Index), s.changed(warm))
	err := s.claim(ctx, p, e, consul.KVSet, ops)
	if err == nil {
		s.mirror.erased(warm)
	}
	return err
}

// ClaimImport creates the row of an engine that the registry has lost, and that is in the
// snapshot store, as Claim does. An earlier quarantine of the engine ends with that. The
// errors are those of Claim.
func (s *Store) ClaimImport(ctx context.Context, p *engine.Product, e *engine.Row) error {
	if e.State != engine.Provisioning || e.Op == nil || e.Op.Restoring == nil || !e.Op.Restoring.Import {
		return fmt.Errorf("registry: %s is not being imported", e.EngineID)
	}
	return s.claim(ctx, p, e, consul.KVCAS, consul.KVTxnOps{{Verb: consul.KVDelete, Key: s.quarantineKey(e.EngineID)}})
}

// claim runs claimOnce until the quota count does not change concurrently.
func (s *Store) claim(ctx context.Context, p *engine.Product, e *engine.Row, index consul.KVOp, source consul.KVTxnOps) error {
	quota := s.quotaTurn(p.ProductID)
	defer quota.end()
	for {
		err := s.claimOnce(ctx, quota, p, e, index, source)
		if !errors.Is(err, errQuotaMoved) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// errQuotaMoved: another replica changed the count between read and write.
var errQuotaMoved = errors.New("registry: quota count moved")

// claimOnce makes one attempt. index says how the index by engine_id is written: a new
// engine has none yet. source removes what the engine is made of from its previous place.
func (s *Store) claimOnce(ctx context.Context, quota *quotaTurn, p *engine.Product, e *engine.Row, index consul.KVOp, source consul.KVTxnOps) error {
	count, at, err := quota.read(ctx)
	if err != nil {
		return err
	}
	ref := e.Idempotency
	rowKey := s.engineKey(e.ProductID, e.UserID)
	if limit := p.Policy.MaxEngines; limit != nil && count >= *limit {
		if quota.forget() {
			return errQuotaMoved // it may have changed, because it was cached
		}
		// The row is checked before the quota: a user who has an engine gets that error
		// even if the product is full.
		pair, err := s.get(ctx, rowKey)
		if err == nil && pair != nil {
			return fmt.Errorf("%w: engine of %q", ErrExists, e.UserID)
		}
		return errors.Join(err, fmt.Errorf("%w: %d of %d", ErrQuota, count, *limit))
	}
	value := encode(e)
	ops, err := s.fenced(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value},
		s.setQuota(p.ProductID, count+1, at),
		&consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: s.productKey(p.ProductID), Index: p.Index},
		&consul.KVTxnOp{Verb: index, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
	)
	if err != nil {
		return err
	}
	const session, row, place = 0, 1, 2 // positions in ops
	record := -1
	if ref != nil {
		// It replaces an expired record, at the index that was read.
		record = len(ops)
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVCAS, Key: s.idempotencyKey(e.ProductID, ref.Key), Value: encode(recordOf(e, ref)), Index: ref.Expired})
	}
	follows, err := s.followed()
	if err != nil {
		return err
	}
	deployment := len(ops)
	ops = append(ops, follows)
	results, failed, err := s.txn(ctx, append(ops, source...))
	quota.wrote(count+1, results)
	switch {
	case err == nil:
		s.written(e, value, results)
		return nil
	case slices.Contains(failed, session):
		return fmt.Errorf("%w: %v", ErrNoSession, err)
	case slices.Contains(failed, deployment):
		return fmt.Errorf("%w: %v", ErrMoved, err)
	case record >= 0 && slices.Contains(failed, record):
		return fmt.Errorf("%w: a concurrent call used it", ErrKeyUsed)
	case slices.Contains(failed, row):
		return fmt.Errorf("%w: engine of %q", ErrExists, e.UserID)
	case slices.Contains(failed, place):
		return errQuotaMoved
	}
	return err
}
