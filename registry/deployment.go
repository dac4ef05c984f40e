package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// RegistryState is whether the registry is known to be complete.
type RegistryState string

// The states of a registry.
const (
	// RegistryOK: there is no sign that rows are missing.
	RegistryOK RegistryState = "ok"
	// RegistryRecovering: the registry was restored from an older state, or lost. Nothing
	// is handed out and nothing removed until the missing rows are rebuilt from the
	// witnesses in Vault and Nomad.
	RegistryRecovering RegistryState = "recovering"
)

// Deployment is the registry's record of the deployment that it belongs to. Vault has a
// witness of it (secrets.Deployment).
type Deployment struct {
	// ID is random, generated once, and the same in both stores. Its first characters are
	// the prefix of new engine_ids.
	ID string `json:"id"`
	// Registry identifies this registry. One that is created again for the same keys has
	// another value.
	Registry string `json:"registry"`
	// Epoch is incremented by each leader when it begins, and from time to time, in Vault
	// before here. Raising is the next epoch; it is written here before that, to
	// distinguish a leader that died in between from a registry that went back in time.
	Epoch   int `json:"epoch"`
	Raising int `json:"raising,omitempty"`

	State RegistryState `json:"state"`
	// Why and Since are why and since when the registry is being recovered.
	Why   string    `json:"why,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Back: the whole registry is certainly an older one, so that operations in its rows
	// may be outdated. Otherwise only rows are missing.
	Back bool `json:"back,omitempty"`
	// KeysLost is when it was noticed that Vault was restored from an older state or
	// emptied; nil once every engine has a key again. Nothing is removed meanwhile, because
	// a witness may be missing.
	KeysLost *time.Time `json:"keys_lost,omitempty"`
	// KeysMissing is the number of engines whose key Vault does not have, as of the
	// leader's last pass.
	KeysMissing int `json:"keys_missing,omitempty"`
	// Last is the last finished recovery.
	Last *Recovery `json:"last_recovery,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0: there is no record.
	Index uint64 `json:"-"`
}

// Recovery is what a recovery of the registry did.
type Recovery struct {
	Why       string    `json:"why"`
	BeganAt   time.Time `json:"began_at"`
	EndedAt   time.Time `json:"ended_at"`
	Rebuilt   int       `json:"rebuilt"`   // rows, from nothing or from an older state
	Corrected int       `json:"corrected"` // rows that existed but were outdated
	Missing   int       `json:"missing"`   // rows whose engine no longer exists
	Products  int       `json:"products"`
	Pooled    int       `json:"pooled"` // removed entries of the pool
}

func (s *Store) deploymentKey() string { return s.prefix + "deployment" }

// Deployment reads the record. Index 0: there is no record. Of a record that cannot be read
// only the Index is set, and the registry counts as lost.
func (s *Store) Deployment(ctx context.Context) (*Deployment, error) {
	pair, err := s.get(ctx, s.deploymentKey())
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return &Deployment{}, nil
	}
	d, err := decode[Deployment](pair)
	if err != nil {
		d = &Deployment{}
	}
	d.Index = pair.ModifyIndex
	return d, nil
}

// PutDeployment writes the record by check-and-set at d.Index. ErrConflict: it has changed.
// ErrNoSession.
func (s *Store) PutDeployment(ctx context.Context, d *Deployment) error {
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.deploymentKey(), Value: encode(d), Index: d.Index})
	if err != nil {
		return err
	}
	results, failed, err := s.txn(ctx, ops)
	if err != nil {
		return s.sessionOr(failed, err)
	}
	d.Index = indexOf(results, s.deploymentKey())
	return nil
}

// LeadDeployment is PutDeployment for the leader. ErrConflict may also mean that this
// replica does not lead.
func (s *Store) LeadDeployment(ctx context.Context, d *Deployment) error {
	ops, err := s.led(&consul.KVTxnOp{Verb: consul.KVCAS, Key: s.deploymentKey(), Value: encode(d), Index: d.Index})
	if err != nil {
		return err
	}
	results, _, err := s.txn(ctx, ops)
	if err != nil {
		return err
	}
	d.Index = indexOf(results, s.deploymentKey())
	return nil
}

// Follow sets the record that claims are checked against; nil: none, and every claim is
// refused with ErrMoved.
func (s *Store) Follow(d *Deployment) { s.deployment.Store(d) }

// Refollowing makes a claim, and retries it after ErrMoved with the current record. It is
// for tests and measurements that write rows beside the service.
func (s *Store) Refollowing(ctx context.Context, claim func() error) error {
	for {
		err := claim()
		if !errors.Is(err, ErrMoved) {
			return err
		}
		d, err := s.Deployment(ctx)
		if err != nil {
			return err
		}
		s.Follow(d)
	}
}

// followed returns the operation that checks that the deployment's record is the one that
// this replica follows. So engines are handed out only while the registry is known to be
// complete.
func (s *Store) followed() (*consul.KVTxnOp, error) {
	d := s.deployment.Load()
	if d == nil {
		return nil, fmt.Errorf("%w: no record is followed", ErrMoved)
	}
	if why, _ := s.WentBack(); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrMoved, why)
	}
	return &consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: s.deploymentKey(), Index: d.Index}, nil
}

// WentBack returns why Consul must have been restored from an older state: a consistent
// read returned a lower index than an earlier one; "" if there is no such sign that was not
// acknowledged by heard. Until heard is called, nothing is claimed, and the mirror's rows
// may be outdated.
func (s *Store) WentBack() (why string, heard func()) {
	if back := s.wentBack.Load(); back != nil {
		return *back, func() { s.wentBack.CompareAndSwap(back, nil) }
	}
	return "", func() {}
}

// Back receives a value when WentBack has a new reason.
func (s *Store) Back() <-chan struct{} { return s.back }

// noteBack records that an index is lower than before.
func (s *Store) noteBack(what string, was, is uint64) {
	why := fmt.Sprintf("the index of %s in Consul went back from %d to %d", what, was, is)
	s.wentBack.Store(&why)
	select {
	case s.back <- struct{}{}:
	default:
	}
}

// Traces returns the engine_ids of everything in the registry: pool entries, rows, and what
// remains of destroyed engines. They are read in the order in which an id passes through
// them.
func (s *Store) Traces(ctx context.Context) (map[string]bool, error) {
	held, err := s.PoolIDs(ctx)
	if err != nil {
		return nil, err
	}
	for _, below := range []string{"engine-ids/", "graves/", quarantineBelow} {
		ids, err := s.idsBelow(ctx, below)
		if err != nil {
			return nil, err
		}
		for id := range ids {
			held[id] = true
		}
	}
	return held, nil
}

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
