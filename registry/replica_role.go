package registry

import (
	"context"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Joined returns a channel that is closed when this replica has its first session.
func (r *Replica) Joined() <-chan struct{} { return r.joined }

// Leader reports whether this replica believes that it leads. That is only a hint: every
// write of a leader checks the lock.
func (r *Replica) Leader() bool {
	_, leader := r.current()
	return leader
}

// Session returns this replica's session while it is certainly alive, by this machine's own
// clock; "" if it may have ended. While it is alive, replicas/<id> exists.
func (r *Replica) Session() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.renewed) > sessionTTL {
		return ""
	}
	return r.session
}

// Absent returns why this replica has no session: ErrNoSession, together with ErrDenied if
// Consul refuses it one.
func (r *Replica) Absent() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused != nil {
		return fmt.Errorf("%w: %w", ErrNoSession, r.refused)
	}
	return ErrNoSession
}

// Role returns this replica's role: "leader", "follower", or "none" without a session.
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

// Replicas lists the ids of the replicas that have a session.
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

// sessionCheck returns the operation that fences a row change by this replica.
func (s *Store) sessionCheck() (*consul.KVTxnOp, error) {
	session, _ := s.replica.current()
	if session == "" {
		return nil, s.replica.Absent()
	}
	return &consul.KVTxnOp{Verb: consul.KVCheckSession, Key: s.replica.key(), Session: session}, nil
}

// current returns the session while it is certainly alive: within its TTL, counted from
// before its last renewal was requested.
func (r *Replica) current() (session string, leader bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.renewed) > sessionTTL {
		return r.session, false
	}
	return r.session, r.leader
}
