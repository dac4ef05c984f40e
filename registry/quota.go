package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// quota reads a product's count of engines, and the index at which it can be changed. A
// missing or damaged count is determined again.
func (s *Store) quota(ctx context.Context, productID string) (count int, index uint64, err error) {
	for {
		pair, err := s.get(ctx, s.quotaKey(productID))
		if err != nil {
			return 0, 0, err
		}
		at := uint64(0)
		if pair != nil {
			if count, ok := countIn(pair.Value); ok {
				return count, pair.ModifyIndex, nil
			}
			at = pair.ModifyIndex
		}
		if err := s.recount(ctx, productID, at); err != nil {
			return 0, 0, err
		}
	}
}

// countIn parses the value of a quota's key; false: it is not a count.
func countIn(value []byte) (count int, ok bool) {
	n, err := strconv.Atoi(string(value))
	return n, err == nil && n >= 0
}

// recount determines the count of a product again, if its key is missing (at 0) or damaged
// at this index. Rows of the product are only written and removed together with a count at
// its index, so the rows that are counted here cannot change before the count is written.
// If another replica was faster, recount changes nothing. ErrNotFound: there is no such
// product.
func (s *Store) recount(ctx context.Context, productID string, at uint64) error {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	keys, meta, err := s.client.KV().Keys(s.prefix+enginesBelow, "", consistent(limited))
	if err != nil {
		return unavailable(err)
	}
	if err := s.unfiltered(limited, enginesBelow, meta, len(keys)); err != nil {
		return err
	}
	count := 0
	for _, key := range keys {
		if name := strings.Split(key[len(s.prefix+enginesBelow):], "/"); len(name) == 3 && name[1] == productID {
			count++
		}
	}
	const product = 0
	_, failed, err := s.txn(ctx, consul.KVTxnOps{{Verb: consul.KVGet, Key: s.productKey(productID)}, s.setQuota(productID, count, at)})
	switch {
	case slices.Contains(failed, product):
		return fmt.Errorf("%w: quota of product %q", ErrNotFound, productID)
	case errors.Is(err, ErrConflict):
		return nil
	}
	return err
}

// QuotaCount returns how many engines the product has, in any state.
func (s *Store) QuotaCount(ctx context.Context, productID string) (int, error) {
	n, _, err := s.quota(ctx, productID)
	return n, err
}

// setQuota returns the operation that changes a count by check-and-set at index.
func (s *Store) setQuota(productID string, count int, index uint64) *consul.KVTxnOp {
	return &consul.KVTxnOp{
		Verb: consul.KVCAS, Key: s.quotaKey(productID),
		Value: []byte(strconv.Itoa(count)), Index: index,
	}
}

// quotaTurn is this replica's turn at a product's quota count. It keeps what this replica
// wrote last, which saves the next turn a read. If another replica has written since, the
// check-and-set fails.
type quotaTurn struct {
	mu        sync.Mutex
	store     *Store
	productID string

	known  bool
	count  int
	index  uint64
	newest uint64 // the highest index that this replica has written
}

// quotaTurn waits for this replica's turn at a product's count.
func (s *Store) quotaTurn(productID string) *quotaTurn {
	t, _ := s.quotas.LoadOrStore(productID, &quotaTurn{store: s, productID: productID})
	turn := t.(*quotaTurn)
	turn.mu.Lock()
	return turn
}

func (t *quotaTurn) end() { t.mu.Unlock() }

// read returns the count and its index, either cached from this replica's last write or
// read from Consul.
func (t *quotaTurn) read(ctx context.Context) (count int, index uint64, err error) {
	if t.known {
		return t.count, t.index, nil
	}
	count, index, err = t.store.quota(ctx, t.productID)
	if err == nil && index < t.newest {
		t.store.noteBack("a product's count", t.newest, index)
		t.newest = index
	}
	return count, index, err
}

// forget makes the next read use Consul, and reports whether the last one was cached.
func (t *quotaTurn) forget() (known bool) {
	known, t.known = t.known, false
	return known
}

// ForgetCounts makes every count be read again, even at a lower index, after the registry
// went back in time.
func (s *Store) ForgetCounts() {
	s.quotas.Range(func(_, t any) bool {
		turn := t.(*quotaTurn)
		turn.mu.Lock()
		defer turn.mu.Unlock()
		turn.known, turn.newest = false, 0
		return true
	})
}

// wrote handles the results of a transaction with the count; there are none if nothing was
// written, or if that is unknown.
func (t *quotaTurn) wrote(count int, results consul.KVPairs) {
	t.count, t.index = count, indexOf(results, t.store.quotaKey(t.productID))
	t.known = t.index > 0
	t.newest = max(t.newest, t.index)
}

// quotaPlace returns the operation that frees one engine's place in its product's quota,
// and the count after it. A warm engine has no place.
func (s *Store) quotaPlace(ctx context.Context, quota *quotaTurn) (op *consul.KVTxnOp, left int, err error) {
	if quota.productID == engine.WarmProduct {
		return &consul.KVTxnOp{Verb: consul.KVGetOrEmpty, Key: s.quotaKey(engine.WarmProduct)}, 0, nil
	}
	count, index, err := quota.read(ctx)
	left = max(count-1, 0)
	return s.setQuota(quota.productID, left, index), left, err
}
