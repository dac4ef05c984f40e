package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Rebuild writes the row of an engine that the registry lost: row, index and quota in one
// transaction, if the product has not changed. before is the row of this engine under
// another owner (a warm engine that was claimed since), or nil. ErrExists: the user has a
// row. ErrConflict: something has changed since it was read. ErrNoSession.
func (s *Store) Rebuild(ctx context.Context, p *engine.Product, e, before *engine.Row) error {
	quota := s.quotaTurn(p.ProductID)
	defer quota.end()
	for {
		err := s.rebuildOnce(ctx, quota, p, e, before)
		if !errors.Is(err, errQuotaMoved) {
			return err
		}
		quota.forget()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (s *Store) rebuildOnce(ctx context.Context, quota *quotaTurn, p *engine.Product, e, before *engine.Row) error {
	count, at, err := quota.read(ctx)
	if err != nil {
		return err
	}
	rowKey, value := s.engineKey(e.ProductID, e.UserID), encode(e)
	ops, err := s.fenced(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value},
		s.setQuota(p.ProductID, count+1, at),
		&consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: s.productKey(p.ProductID), Index: p.Index},
		&consul.KVTxnOp{Verb: consul.KVSet, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
		&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.quarantineKey(e.EngineID)},
	)
	if err != nil {
		return err
	}
	if e.NodeID != "" {
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.pooledKey(e.NodeID, e.EngineID)})
	}
	ops = append(ops, s.giveUp(before)...)
	const session, row, place = 0, 1, 2 // positions in ops
	results, failed, err := s.txn(ctx, ops)
	quota.wrote(count+1, results)
	switch {
	case err == nil:
		if before != nil {
			s.mirror.erased(before)
		}
		s.written(e, value, results)
		return nil
	case slices.Contains(failed, session):
		return s.sessionOr(failed, err)
	case slices.Contains(failed, row):
		return fmt.Errorf("%w: engine of %q", ErrExists, e.UserID)
	case slices.Contains(failed, place):
		return errQuotaMoved
	}
	return err
}

// giveUp returns the operations that remove a row whose engine gets another row; none for
// nil.
func (s *Store) giveUp(row *engine.Row) consul.KVTxnOps {
	if row == nil {
		return nil
	}
	return append(deleteAt(s.engineKey(row.ProductID, row.UserID), row.Index), s.changed(row))
}

// Correct replaces the row at e.Index, in any state or unreadable, with e. It is for rows
// that are older than their witnesses, or damaged. oldID is the engine_id of the old row;
// "" if unknown. before is another row that names the engine and is removed, or nil.
// ErrConflict: a row has changed.
func (s *Store) Correct(ctx context.Context, e *engine.Row, oldID string, before *engine.Row) error {
	rowKey, value := s.engineKey(e.ProductID, e.UserID), encode(e)
	ops, err := s.fenced(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value, Index: e.Index},
		&consul.KVTxnOp{Verb: consul.KVSet, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
	)
	if err != nil {
		return err
	}
	if oldID != e.EngineID {
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.quarantineKey(e.EngineID)})
	}
	if oldID != e.EngineID && oldID != "" {
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.engineIDKey(oldID)})
	}
	ops = append(ops, s.giveUp(before)...)
	results, failed, err := s.txn(ctx, ops)
	if err != nil {
		return s.sessionOr(failed, err)
	}
	if before != nil {
		s.mirror.erased(before)
	}
	s.written(e, value, results)
	return nil
}

// RestoreProduct writes a product's row and its indexes from its witness, as the leader.
// old is the existing row, which may be unreadable at old.Index, or nil. ErrExists: another
// product has its slug. ErrConflict: the row has changed.
func (s *Store) RestoreProduct(ctx context.Context, p *engine.Product, old *engine.Product) error {
	id, index := []byte(p.ProductID), uint64(0)
	if old != nil {
		index = old.Index
	}
	if holder, err := s.get(ctx, s.slugKey(p.Slug)); err != nil {
		return err
	} else if holder != nil && string(holder.Value) != p.ProductID {
		return fmt.Errorf("%w: slug %q", ErrExists, p.Slug)
	}
	ops, err := s.led(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.productKey(p.ProductID), Value: encode(p), Index: index},
		&consul.KVTxnOp{Verb: consul.KVSet, Key: s.slugKey(p.Slug), Value: id},
		&consul.KVTxnOp{Verb: consul.KVSet, Key: s.platformKey(p.PlatformKeyHash), Value: id},
	)
	if err != nil {
		return err
	}
	kept := map[string]bool{p.PlatformKeyHash: true}
	for _, k := range p.RetiredKeys {
		kept[k.Hash] = true
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVSet, Key: s.platformKey(k.Hash), Value: id})
	}
	if old != nil { // keys that were rotated since become invalid again
		for _, k := range append([]engine.RetiredKey{{Hash: old.PlatformKeyHash}}, old.RetiredKeys...) {
			if k.Hash != "" && !kept[k.Hash] {
				ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.platformKey(k.Hash)})
			}
		}
	}
	_, _, err = s.txn(ctx, ops)
	return err
}
