package registry

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Update writes e by check-and-set at e.Index and sets the new index. ErrConflict: another
// writer has changed the row; nothing was written. ErrKeyUsed: the new record in e exists
// already; nothing was written.
func (s *Store) Update(ctx context.Context, e *engine.Row) error {
	if err := engine.CheckMove(keptOf(e.Stored).state, e.State); err != nil {
		return err
	}
	if e.Op != nil {
		e.SleepPending = "" // an engine that is being changed is not idle
	}
	rowKey := s.engineKey(e.ProductID, e.UserID)
	ref := e.Idempotency
	record := s.recordOps(e)
	value := encode(e)
	ops, err := s.fenced(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value, Index: e.Index},
		s.changed(e),
	)
	if err == nil {
		var results consul.KVPairs
		var failed []int
		if results, failed, err = s.txn(ctx, append(ops, record...)); err == nil {
			if ref != nil {
				ref.Fresh, ref.Replaces = false, ""
			}
			s.written(e, value, results)
			return nil
		}
		if ref != nil && ref.Fresh && slices.Contains(failed, len(ops)) && !slices.Contains(failed, 0) {
			return fmt.Errorf("%w: a concurrent call used it", ErrKeyUsed)
		}
		err = s.sessionOr(failed, err)
	}
	e.Idempotency = ref // nothing was written
	return err
}

// Reidentify gives a provisioning row another engine_id and volume, to try the next node if
// the first one could not place it. The old id was never returned, and its resources were
// removed before. ErrConflict: as in Claim.
func (s *Store) Reidentify(ctx context.Context, oldID string, e *engine.Row, pooled *PooledVolume) error {
	rowKey, value := s.engineKey(e.ProductID, e.UserID), encode(e)
	ops, err := s.fenced(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: rowKey, Value: value, Index: e.Index},
		&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.engineIDKey(oldID)},
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.engineIDKey(e.EngineID), Value: []byte(rowKey[len(s.prefix):])},
		s.changed(e),
	)
	if err != nil {
		return err
	}
	if r := e.Idempotency; r != nil {
		ops = append(ops, &consul.KVTxnOp{Verb: consul.KVSet, Key: s.idempotencyKey(e.ProductID, r.Key), Value: encode(recordOf(e, r))})
	}
	follows, err := s.followed()
	if err != nil {
		return err
	}
	deployment := len(ops)
	results, failed, err := s.txn(ctx, append(append(ops, follows), s.takePooled(pooled)...))
	if slices.Contains(failed, deployment) && !slices.Contains(failed, 0) {
		return fmt.Errorf("%w: %v", ErrMoved, err)
	}
	if err != nil {
		return s.sessionOr(failed, err)
	}
	s.written(e, value, results)
	return nil
}

// Remove deletes a destroying row and its index, and frees its place in the quota, in one
// transaction. With leaveVolume it lists its volume as unreachable, and its discarded ones
// in any case. ErrConflict: the row has changed.
func (s *Store) Remove(ctx context.Context, e *engine.Row, leaveVolume bool) error {
	if err := engine.CheckMove(keptOf(e.Stored).state, engine.Gone); err != nil {
		return err
	}
	quota := s.quotaTurn(e.ProductID)
	defer quota.end()
	rowKey := s.engineKey(e.ProductID, e.UserID)
	for {
		place, left, err := s.quotaPlace(ctx, quota)
		if err != nil {
			return err
		}
		ops, err := s.fenced(
			&consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: rowKey, Index: e.Index},
			place,
			&consul.KVTxnOp{Verb: consul.KVDelete, Key: s.engineIDKey(e.EngineID)},
			s.changed(e),
			&consul.KVTxnOp{Verb: consul.KVDelete, Key: rowKey},
		)
		if err != nil {
			return err
		}
		if r := e.Idempotency; r != nil {
			record := &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.idempotencyKey(e.ProductID, r.Key)} // of a change that failed or was interrupted
			if r.Kind == engine.OpDestroy {
				done := recordOf(e, r)
				done.Done = true
				record.Verb, record.Value = consul.KVSet, encode(done)
			}
			ops = append(ops, record)
		}
		if leaveVolume {
			g := &UnreachableVolume{
				EngineID: e.EngineID, NodeID: e.NodeID, VolumeID: e.VolumeID, VolumeName: e.VolumeName, VolumePath: e.VolumePath,
				ProductID: e.ProductID, UserID: e.UserID, Since: time.Now().UTC(), Unproven: len(e.Unproven) > 0,
			}
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVSet, Key: s.unreachableVolumeKey(g), Value: encode(g)})
		}
		for _, d := range e.Discarded {
			g := &UnreachableVolume{
				EngineID: e.EngineID, NodeID: d.NodeID, VolumeID: d.VolumeID, VolumeName: d.VolumeName, VolumePath: d.VolumePath,
				ProductID: e.ProductID, UserID: e.UserID, Since: time.Now().UTC(), Former: true,
			}
			ops = append(ops, &consul.KVTxnOp{Verb: consul.KVSet, Key: s.unreachableVolumeKey(g), Value: encode(g)})
		}
		const row, count = 1, 2
		results, failed, err := s.txn(ctx, ops)
		quota.wrote(left, results)
		if slices.Contains(failed, count) && !slices.Contains(failed, row) && ctx.Err() == nil {
			continue // another replica changed the count
		}
		if err == nil {
			s.mirror.erased(e)
		}
		return s.sessionOr(failed, err)
	}
}

// Verify checks that e is still the row that was read at e.Index, and that this replica
// still has its session, at some moment after the call began. ErrConflict: another writer
// has changed the row. ErrNoSession: other replicas may take over this replica's
// operations.
func (s *Store) Verify(ctx context.Context, e *engine.Row) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: s.engineKey(e.ProductID, e.UserID), Index: e.Index})
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops) // consistent, although it writes nothing
	return s.sessionOr(failed, err)
}

// written records that e was stored as value.
func (s *Store) written(e *engine.Row, value []byte, results consul.KVPairs) {
	key := s.engineKey(e.ProductID, e.UserID)
	was := keptOf(e.Stored)
	was.state = e.State
	e.Index, e.Stored = indexOf(results, key), was
	s.mirror.wrote(storedAt(key, value, e.Index))
}

// changed returns the operation that notifies the watchers of a row's shard. It writes a
// different value each time, because Consul keeps the index of an unchanged value.
func (s *Store) changed(e *engine.Row) *consul.KVTxnOp {
	return &consul.KVTxnOp{
		Verb: consul.KVSet, Key: s.changeKey(e.ProductID, e.UserID),
		Value: []byte(e.EngineID + "@" + strconv.FormatUint(e.Index, 10)),
	}
}

// fenced puts a check of this replica's session before the operations, so that a replica
// that was paused and lost its session cannot write.
func (s *Store) fenced(ops ...*consul.KVTxnOp) (consul.KVTxnOps, error) {
	check, err := s.sessionCheck()
	if err != nil {
		return nil, err
	}
	return append(consul.KVTxnOps{check}, ops...), nil
}

// sessionOr returns ErrNoSession if the session check, always the first operation, failed.
// That is not ErrConflict, because the row may be unchanged.
func (s *Store) sessionOr(failed []int, err error) error {
	if slices.Contains(failed, 0) {
		return fmt.Errorf("%w: %v", ErrNoSession, err)
	}
	return err
}

func indexOf(results consul.KVPairs, key string) uint64 {
	for _, r := range results {
		if r.Key == key {
			return r.ModifyIndex
		}
	}
	return 0
}
