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

// RegistryState says whether the registry is known to be whole.
type RegistryState string

// The states of a registry.
const (
	// RegistryOK: nothing says that rows are missing.
	RegistryOK RegistryState = "ok"
	// RegistryRecovering: it was restored from an older state, or lost. Nothing is
	// handed out and nothing removed until what is missing has been rebuilt from
	// the witnesses in Vault and Nomad.
	RegistryRecovering RegistryState = "recovering"
)

// Deployment is the registry's record of which deployment it belongs to. Vault has
// a witness of it (secrets.Deployment).
type Deployment struct {
	// ID is random, made once, and the same in both stores. New engine_ids begin
	// with its first characters.
	ID string `json:"id"`
	// Registry names this registry; one that is made anew for the same keys has
	// another name.
	Registry string `json:"registry"`
	// Epoch is raised by each leader when it begins, and from time to time, in Vault
	// before it is raised here. Raising is the one to come, written here before that:
	// a leader that dies in between is told from a registry that went back.
	Epoch   int `json:"epoch"`
	Raising int `json:"raising,omitempty"`

	State RegistryState `json:"state"`
	// Why and Since say why the registry is being recovered, and since when.
	Why   string    `json:"why,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Back says that the registry as a whole is surely an older one, so that the
	// operations in its rows may be of then. Otherwise rows are missing in it.
	Back bool `json:"back,omitempty"`
	// KeysLost says that Vault was restored from an older state or emptied, and
	// when that was seen; nil when every engine has its key again. Nothing is removed
	// meanwhile, for a witness may be missing.
	KeysLost *time.Time `json:"keys_lost,omitempty"`
	// KeysMissing are the engines whose key Vault does not have, as of the leader's
	// last pass.
	KeysMissing int `json:"keys_missing,omitempty"`
	// Last tells of the last recovery that came to its end.
	Last *Recovery `json:"last_recovery,omitempty"`

	// Index is the record's ModifyIndex in Consul; 0: there is none.
	Index uint64 `json:"-"`
}

// Recovery is what a recovery of the registry did.
type Recovery struct {
	Why       string    `json:"why"`
	BeganAt   time.Time `json:"began_at"`
	EndedAt   time.Time `json:"ended_at"`
	Rebuilt   int       `json:"rebuilt"`   // rows, from nothing or from an older state
	Corrected int       `json:"corrected"` // rows that were there and said something older
	Missing   int       `json:"missing"`   // rows whose engine is gone
	Products  int       `json:"products"`
	Pooled    int       `json:"pooled"` // entries of the pool that were taken away
}

func (s *Store) deploymentKey() string { return s.prefix + "deployment" }

// Deployment reads the record; one with Index 0 is not there. One that cannot be read
// says nothing but its Index: the registry is taken for one that was lost.
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

// PutDeployment writes the record over the one that was read, by check-and-set.
// ErrConflict: it changed. ErrNoSession.
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

// LeadDeployment is PutDeployment of the leader. ErrConflict is also that this
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

// Follow says which record claims are checked against; nil: none, and every claim
// is refused with ErrMoved.
func (s *Store) Follow(d *Deployment) { s.deployment.Store(d) }

// Refollowing makes a claim, and makes it again after ErrMoved with the record as it is
// by then: for those who write rows beside the service, to measure or to test it.
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

// followed is the operation that checks that the deployment's record is the one
// that this replica follows: what is handed out is so only while the registry is
// known to be whole.
func (s *Store) followed() (*consul.KVTxnOp, error) {
	d := s.deployment.Load()
	if d == nil {
		return nil, fmt.Errorf("%w: none is followed", ErrMoved)
	}
	if why, _ := s.WentBack(); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrMoved, why)
	}
	return &consul.KVTxnOp{Verb: consul.KVCheckIndex, Key: s.deploymentKey(), Index: d.Index}, nil
}

// WentBack says what shows that Consul was restored from an older state, if anything
// was seen that was not heard yet: an index that is lower than one of before, by a
// consistent read. "": nothing. Until heard is called nothing is claimed, and the mirror's
// rows may be of then.
func (s *Store) WentBack() (why string, heard func()) {
	if back := s.wentBack.Load(); back != nil {
		return *back, func() { s.wentBack.CompareAndSwap(back, nil) }
	}
	return "", func() {}
}

// Back is sent to when WentBack has something to tell.
func (s *Store) Back() <-chan struct{} { return s.back }

// noteBack notes that an index is lower than it was.
func (s *Store) noteBack(what string, was, is uint64) {
	why := fmt.Sprintf("the index of %s in Consul went back from %d to %d", what, was, is)
	s.wentBack.Store(&why)
	select {
	case s.back <- struct{}{}:
	default:
	}
}

// Traces are the engine_ids that anything in the registry holds: a pool entry, a
// row, or what is left of a destroyed engine, read in the order in which an id
// passes through them.
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

// Rebuild writes the row of an engine whose row the registry lost:
// row, index and place in the quota in one transaction, beside the product as it
// was read. before is the row that is there under another owner (a warm engine that
// was claimed since), or nil. ErrExists: the user has a row. ErrConflict: something
// changed since it was read. ErrNoSession.
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

// giveUp are the operations that remove a row whose engine another row gets; none for nil.
func (s *Store) giveUp(row *engine.Row) consul.KVTxnOps {
	if row == nil {
		return nil
	}
	return append(deleteAt(s.engineKey(row.ProductID, row.UserID), row.Index), s.changed(row))
}

// Correct writes e over the row that was read at e.Index, whatever state that was
// in, or that could not be read there: what witnesses say of a row that is older than
// they are, or damaged. oldID is the engine_id of that row; "" where it is not known.
// before is another row that names the engine and goes with it, or nil.
// ErrConflict: a row changed.
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

// RestoreProduct writes a product's row as its witness has it, with all that finds
// it, as the leader; over the row that was read (nil: there is none), or that could not
// be read at old.Index.
// ErrExists: another product has its slug. ErrConflict: the row changed.
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
	if old != nil { // keys that were rotated since end again
		for _, k := range append([]engine.RetiredKey{{Hash: old.PlatformKeyHash}}, old.RetiredKeys...) {
			if k.Hash != "" && !kept[k.Hash] {
				ops = append(ops, &consul.KVTxnOp{Verb: consul.KVDelete, Key: s.platformKey(k.Hash)})
			}
		}
	}
	_, _, err = s.txn(ctx, ops)
	return err
}
