package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
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
