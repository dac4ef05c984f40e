package registry

import (
	"context"
	"crypto/rand"
	"strings"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// ProposeSleep marks a running row with SleepPending, as the leader, and sets the new
// index. This is the first of the two phases in which an engine is put to sleep. An admit
// that reads the marked row writes it, which makes the second phase fail, because that
// compares the index. Admits that read the row before are in the replicas' flushes.
// ErrConflict: the row has changed, or this replica does not lead.
func (s *Store) ProposeSleep(ctx context.Context, e *engine.Row) error {
	before := e.SleepPending
	e.SleepPending = strings.ToLower(rand.Text())
	value := encode(e)
	ops, err := s.led(
		&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.engineKey(e.ProductID, e.UserID), Value: value, Index: e.Index},
		s.changed(e),
	)
	if err == nil {
		var results consul.KVPairs
		if results, _, err = s.txn(ctx, ops); err == nil {
			s.written(e, value, results)
			return nil
		}
	}
	e.SleepPending = before
	return err
}

// Awake returns the rows of running engines without an operation, of all products.
func (m *Mirror) Awake() []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var rows []*engine.Row
	for _, e := range m.below("") {
		if e.State == engine.Running && e.Op == nil {
			rows = append(rows, e)
		}
	}
	return rows
}
