package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// Unreadable is a record that this version of the service cannot read. It is the error of a
// read of that record; lists return such records separately.
type Unreadable struct {
	// Key is the record's complete key in Consul, and Index its ModifyIndex.
	Key   string
	Index uint64
	// ProductID is the product in the key, and UserID the user, if it is the key of an
	// engine's row.
	ProductID, UserID string
	// Newer: a newer version of the service wrote it. It is not damaged, and this version
	// does not change it.
	Newer bool
	// Err is the reason, for the log.
	Err error
}

func (u *Unreadable) Error() string {
	return fmt.Sprintf("registry: %q cannot be read: %v", u.Key, u.Err)
}

func (u *Unreadable) Unwrap() error { return u.Err }

// Name returns the last segment of the record's key.
func (u *Unreadable) Name() string { return base(u.Key) }

// asUnreadable returns the unreadable record in an error, or nil.
func asUnreadable(err error) *Unreadable {
	var u *Unreadable
	errors.As(err, &u)
	return u
}

// decodeEach decodes a list of keys, and passes each key's ModifyIndex to index. Records
// that cannot be read are returned separately.
func decodeEach[T any](pairs consul.KVPairs, index func(*T, uint64)) (list []*T, unreadable []*Unreadable) {
	list = make([]*T, 0, len(pairs))
	for _, pair := range pairs {
		v, err := decode[T](pair)
		if err != nil {
			unreadable = append(unreadable, asUnreadable(err))
			continue
		}
		index(v, pair.ModifyIndex)
		list = append(list, v)
	}
	return list, unreadable
}

// Announce makes all replicas read a row again, as the leader, because a write that damaged
// it, or added a second one, notified nobody.
func (s *Store) Announce(ctx context.Context, productID, userID string) error {
	ops, err := s.led(s.announced(productID, userID))
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}

// announced is changed for a row that cannot be read.
func (s *Store) announced(productID, userID string) *consul.KVTxnOp {
	at := strconv.FormatInt(time.Now().UnixNano(), 10)
	return &consul.KVTxnOp{Verb: consul.KVSet, Key: s.changeKey(productID, userID), Value: []byte("announced@" + at)}
}

// RemoveUnreadable deletes an unreadable row by check-and-set at its index, as the leader,
// and frees its place in the quota. ErrConflict: the row has changed, or this replica does
// not lead.
func (s *Store) RemoveUnreadable(ctx context.Context, u *Unreadable) error {
	_, err := s.removeAlone(ctx, u.ProductID, u.Key, u.Index, s.announced(u.ProductID, u.UserID), s.led)
	return err
}

// DropTwin deletes a row that names another row's engine, unless it has changed, and frees
// its place in the quota. The index by engine_id belongs to the other row. ErrConflict: the
// row has changed.
func (s *Store) DropTwin(ctx context.Context, e *engine.Row) error {
	failed, err := s.removeAlone(ctx, e.ProductID, s.engineKey(e.ProductID, e.UserID), e.Index, s.changed(e), s.fenced)
	if err == nil {
		s.mirror.erased(e)
	}
	return s.sessionOr(failed, err)
}

// removeAlone deletes the key of a row, and frees its place in the quota. told is the
// operation that notifies the watchers, and by adds the condition on this replica.
func (s *Store) removeAlone(ctx context.Context, productID, key string, index uint64, told *consul.KVTxnOp, by func(...*consul.KVTxnOp) (consul.KVTxnOps, error)) (failed []int, err error) {
	quota := s.quotaTurn(productID)
	defer quota.end()
	for {
		place, left, err := s.quotaPlace(ctx, quota)
		if errors.Is(err, ErrNotFound) { // the product was deleted, and its count with it
			place, left, err = &consul.KVTxnOp{Verb: consul.KVGetOrEmpty, Key: s.quotaKey(productID)}, 0, nil
		}
		if err != nil {
			return nil, err
		}
		ops, err := by(append(consul.KVTxnOps{place, told}, deleteAt(key, index)...)...)
		if err != nil {
			return nil, err
		}
		const count, row = 1, 3 // positions in ops
		results, failed, err := s.txn(ctx, ops)
		quota.wrote(left, results)
		if slices.Contains(failed, count) && !slices.Contains(failed, row) && ctx.Err() == nil {
			continue // another replica changed the count
		}
		return failed, err
	}
}

// DeleteUnreadable deletes an unnecessary record by check-and-set at its index, as the
// leader. ErrConflict: it has changed, or this replica does not lead.
func (s *Store) DeleteUnreadable(ctx context.Context, u *Unreadable) error {
	ops, err := s.led(deleteAt(u.Key, u.Index)...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}
