package registry

import (
	"context"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Evacuation is the removal of all engines from a node. There is one record per node, which is
// kept after its end.
type Evacuation struct {
	NodeID      string    `json:"node_id"`
	RequestedAt time.Time `json:"requested_at"`
	// Asked is the id of the last request. A new one lets failed attempts be repeated at once.
	Asked string `json:"asked"`
	// By is EvacuateCall or EvacuateDrain.
	By string `json:"by"`
	// Found is how Nomad had the node before.
	Found NodeFound `json:"found"`
	// Total is how many engines the node had then.
	Total int `json:"total"`
	// Failures are the last failed attempts of engines that are still on the node, by
	// engine_id.
	Failures map[string]FailedMove `json:"failures,omitempty"`
	// Registry is the registry's mark (Deployment.Registry) and Recovered the end of its last
	// recovery, at the beginning: a record that comes back with a backup of Consul is not
	// followed.
	Registry  string    `json:"registry"`
	Recovered time.Time `json:"recovered,omitzero"`
	// Cancelled: somebody has asked for the end. Engines that were stopped for their move still
	// arrive.
	Cancelled bool `json:"cancelled,omitempty"`
	// Waits is what the evacuation waits for; empty: nothing.
	Waits   string    `json:"waits,omitempty"`
	EndedAt time.Time `json:"ended_at,omitzero"`
	// Outcome is EvacuationDone, EvacuationCancelled or EvacuationExpired; empty: it goes on.
	Outcome string `json:"outcome,omitempty"`

	Index uint64 `json:"-"`
}

// NodeFound is how Nomad had a node before its evacuation.
type NodeFound struct {
	Eligible bool `json:"eligible,omitempty"`
	// Drain: somebody had begun to drain it, by DrainUntil (zero: without a deadline).
	Drain            bool      `json:"drain,omitempty"`
	DrainUntil       time.Time `json:"drain_until,omitzero"`
	IgnoreSystemJobs bool      `json:"ignore_system_jobs,omitempty"`
}

// FailedMove is a failed attempt to move an engine.
type FailedMove struct {
	Code     string    `json:"code"`
	Message  string    `json:"message"`
	At       time.Time `json:"at"`
	Attempts int       `json:"attempts"`
	// Down: the engine had been stopped for the last attempt. Own: for a cause that is in its own
	// brain, and says nothing about the moves of others.
	Down bool `json:"down,omitempty"`
	Own  bool `json:"own,omitempty"`
}

// Who asked for an evacuation.
const (
	EvacuateCall  = "call"
	EvacuateDrain = "drain"
)

// Outcomes of evacuations.
const (
	EvacuationDone      = "done"
	EvacuationCancelled = "cancelled"
	// EvacuationExpired: the deadline of the node's drain came first.
	EvacuationExpired = "expired"
)

const evacuationsBelow = "evacuations/"

func (s *Store) evacuationKey(nodeID string) string { return s.prefix + evacuationsBelow + nodeID }

// Evacuations lists the records of all nodes. One that cannot be read is left out: its
// evacuation must be requested again.
func (s *Store) Evacuations(ctx context.Context) ([]*Evacuation, error) {
	pairs, err := s.list(ctx, evacuationsBelow)
	if err != nil {
		return nil, err
	}
	var all []*Evacuation
	for _, pair := range pairs {
		if e := evacuationIn(pair); e.NodeID != "" {
			all = append(all, e)
		}
	}
	return all, nil
}

// Evacuation reads the record of a node. It is zero, but for its Index, if there is none or it
// cannot be read.
func (s *Store) Evacuation(ctx context.Context, nodeID string) (*Evacuation, error) {
	pair, err := s.get(ctx, s.evacuationKey(nodeID))
	if err != nil || pair == nil {
		return &Evacuation{}, err
	}
	return evacuationIn(pair), nil
}

func evacuationIn(pair *consul.KVPair) *Evacuation {
	e, err := decode[Evacuation](pair)
	if err != nil || e.NodeID != base(pair.Key) {
		e = &Evacuation{}
	}
	e.Index = pair.ModifyIndex
	return e
}

// PutEvacuation writes a record by check-and-set at e.Index (0: a new one). ErrConflict: it has
// changed. ErrNoSession.
func (s *Store) PutEvacuation(ctx context.Context, e *Evacuation) error {
	key := s.evacuationKey(e.NodeID)
	ops, err := s.fenced(&consul.KVTxnOp{Verb: consul.KVCAS, Key: key, Value: encode(e), Index: e.Index})
	if err != nil {
		return err
	}
	results, failed, err := s.txn(ctx, ops)
	if err != nil {
		return s.sessionOr(failed, err)
	}
	e.Index = indexOf(results, key)
	return nil
}

// DeleteEvacuation deletes the record by check-and-set at e.Index. ErrConflict: it has changed.
func (s *Store) DeleteEvacuation(ctx context.Context, e *Evacuation) error {
	ops, err := s.fenced(deleteAt(s.evacuationKey(e.NodeID), e.Index)...)
	if err != nil {
		return err
	}
	_, failed, err := s.txn(ctx, ops)
	return s.sessionOr(failed, err)
}
