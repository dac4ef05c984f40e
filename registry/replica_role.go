package registry

import (
	"context"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Joined is closed when this replica first held a session.
func (r *Replica) Joined() <-chan struct{} { return r.joined }

// Leader says whether this replica believes that it leads. The belief is only a
// hint: every write of a leader carries a check of the lock.
func (r *Replica) Leader() bool {
	_, leader := r.current()
	return leader
}

// Session is the session that this replica holds, while it surely lives: renewed
// within its TTL by this machine's own clock; "" when it may be gone. As long as
// it lives, replicas/<id> is there.
func (r *Replica) Session() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.renewed) > sessionTTL {
		return ""
	}
	return r.session
}

// Role is what this replica is among the others: "leader", "follower", or "none"
// without a session.
func (r *Replica) Role() string {
	session := r.Session()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case session == "":
		return "none"
	case r.leader:
		return "leader"
	}
	return "follower"
}

// Replicas lists the ids of the replicas that hold a session.
func (s *Store) Replicas(ctx context.Context) (map[string]bool, error) {
	return s.idsBelow(ctx, "replicas/")
}

// led puts a check of the lead before the operations.
func (s *Store) led(ops ...*consul.KVTxnOp) (consul.KVTxnOps, error) {
	session, leader := s.replica.current()
	if session == "" || !leader {
		return nil, fmt.Errorf("%w: not the leader", ErrConflict)
	}
	check := &consul.KVTxnOp{Verb: consul.KVCheckSession, Key: s.replica.leaderKey(), Session: session}
	return append(consul.KVTxnOps{check}, ops...), nil
}

// sessionCheck is the operation that fences a row change by this replica.
func (s *Store) sessionCheck() (*consul.KVTxnOp, error) {
	session, _ := s.replica.current()
	if session == "" {
		return nil, ErrNoSession
	}
	return &consul.KVTxnOp{Verb: consul.KVCheckSession, Key: s.replica.key(), Session: session}, nil
}

// current is the session while it surely lives: renewed within its TTL, counted
// from before the renewal was asked for.
func (r *Replica) current() (session string, leader bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.renewed) > sessionTTL {
		return r.session, false
	}
	return r.session, r.leader
}
