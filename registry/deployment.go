package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
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
