package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

const (
	// sessionTTL is Consul's minimum (10 s). Consul may take up to twice that to end a dead
	// session, so the operations of a killed replica are taken over after 10 to 20 s and a
	// margin.
	sessionTTL = 10 * time.Second
	// lockDelay keeps the lead free for a moment after a leader was lost. The leader's
	// session fences every write, so this delay need not cover a paused leader: 1 s, while
	// Consul's default is 15 s.
	lockDelay = time.Second
	// renewEvery allows two attempts within the TTL.
	renewEvery = sessionTTL / 3
)

// Replica is this process as one of the replicas of the service. It has a Consul session
// and, bound to it, the key replicas/<id>. While that key exists, the replica owns its
// operations; afterwards other replicas take them over.
type Replica struct {
	store *Store
	log   hclog.Logger
	// ID is new in every process.
	ID string

	mu      sync.Mutex
	session string
	renewed time.Time
	leader  bool
	retired bool          // it no longer tries to get the lead
	joined  chan struct{} // closed when the first session exists
	refused error         // by Consul, when the session was to be kept; nil: it was kept, or Consul is away
}

// Join makes this process a replica, and Run keeps it one. Changes of rows return
// ErrNoSession until there is a session.
func (s *Store) Join(log hclog.Logger) *Replica {
	r := &Replica{store: s, log: log, ID: strings.ToLower(rand.Text()), joined: make(chan struct{})}
	s.replica = r
	return r
}

// Run keeps the session until ctx ends, and then destroys it, so that others need not wait
// for its TTL. It replaces a lost session by a new one for the same ID.
func (r *Replica) Run(ctx context.Context) {
	defer r.leave()
	vacant, watched := make(chan struct{}, 1), make(chan struct{})
	go func() { defer close(watched); r.watchLead(ctx, vacant) }()
	defer func() { <-watched }()
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		err := r.keep(ctx)
		r.note(err)
		if err != nil && ctx.Err() == nil {
			r.log.Warn("this replica has no consul session", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-vacant:
		}
	}
}

const (
	// leadWait limits one blocking query that waits for the lead to become free.
	leadWait = 30 * time.Second
	// vacantRetry is the interval of attempts to get a free lead, which the lock delay
	// keeps free for a while.
	vacantRetry = lockDelay / 4
)

// watchLead reports when nobody leads, so that the next leader does not have to wait for
// the next renewal.
func (r *Replica) watchLead(ctx context.Context, vacant chan<- struct{}) {
	var index uint64
	for ctx.Err() == nil && !r.isRetired() {
		limited, cancel := context.WithTimeout(ctx, leadWait+callTimeout)
		pair, meta, err := r.store.client.KV().Get(r.leaderKey(), (&consul.QueryOptions{WaitIndex: index, WaitTime: leadWait}).WithContext(limited))
		cancel()
		wait := time.Duration(0)
		switch {
		case err != nil:
			index, wait = 0, time.Second
		case pair == nil || pair.Session == "":
			index, wait = 0, vacantRetry
			select {
			case vacant <- struct{}{}:
			default:
			}
		case meta.LastIndex < index: // the indexes of a restored Consul can be lower
			index = 0
		default:
			index = meta.LastIndex
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// Retire gives up the lead, if this replica has it, and makes it stop trying to get it. The
// session, and with it this replica's operations, stays. Another replica leads at once,
// because a released lock has no delay.
func (r *Replica) Retire(ctx context.Context) error {
	r.mu.Lock()
	r.retired = true
	session, leading := r.session, r.leader
	r.leader = false
	r.mu.Unlock()
	if !leading {
		return nil
	}
	r.log.Info("released the leadership")
	return r.release(ctx, session)
}

func (r *Replica) isRetired() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.retired
}

// release releases the lock of the lead.
func (r *Replica) release(ctx context.Context, session string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := r.store.client.KV().Release(&consul.KVPair{Key: r.leaderKey(), Session: session}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// keep renews or creates the session, and tries to get the lead.
func (r *Replica) keep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := time.Now()
	session, _ := r.current()
	if session != "" {
		alive, err := r.renew(ctx, session)
		switch {
		case err != nil:
			return err
		case alive:
			if err := r.keepKey(ctx, session); err != nil {
				return err
			}
			r.hold(session, asked)
			return r.campaign(ctx, session)
		}
		r.log.Warn("consul session expired; creating a new one")
		r.drop()
	}
	host, _ := os.Hostname()
	session, _, err := r.store.client.Session().CreateNoChecks(&consul.SessionEntry{
		Name: "orch replica " + r.ID + " on " + host, TTL: sessionTTL.String(),
		LockDelay: lockDelay, Behavior: consul.SessionBehaviorDelete,
	}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return unavailable(err)
	}
	if err := r.lockKey(ctx, session); err != nil {
		_, derr := r.store.client.Session().Destroy(session, (&consul.WriteOptions{}).WithContext(ctx))
		return errors.Join(err, derr)
	}
	r.hold(session, asked)
	return r.campaign(ctx, session)
}

// renew reports whether the session still exists, and if so extends its life. It does not use
// the client's Renew, whose errors have no status.
func (r *Replica) renew(ctx context.Context, session string) (alive bool, err error) {
	_, err = r.store.client.Raw().Write("/v1/session/renew/"+session, nil, nil, (&consul.WriteOptions{}).WithContext(ctx))
	var status consul.StatusError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &status) && status.Code == http.StatusNotFound:
		return false, nil
	}
	return false, unavailable(err)
}

// note remembers whether Consul refused to keep the session.
func (r *Replica) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused = nil; errors.Is(err, ErrDenied) {
		r.refused = err
	}
}

// lockKey binds replicas/<id> to a session of this replica.
func (r *Replica) lockKey(ctx context.Context, session string) error {
	host, _ := os.Hostname()
	ok, _, err := r.store.client.KV().Acquire(&consul.KVPair{Key: r.key(), Value: []byte(host), Session: session},
		(&consul.WriteOptions{}).WithContext(ctx))
	if err == nil && !ok {
		err = fmt.Errorf("%w: replicas/%s is still locked by the previous session", ErrConflict, r.ID)
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// keepKey binds replicas/<id> to the session again if it was deleted: without it, this
// replica could write no row.
func (r *Replica) keepKey(ctx context.Context, session string) error {
	pair, err := r.store.get(ctx, r.key())
	if err != nil || pair != nil && pair.Session == session {
		return err
	}
	r.log.Warn("the key of this replica was deleted from consul; creating it again", "key", r.key())
	return r.lockKey(ctx, session)
}

// campaign takes the lead if it is free.
func (r *Replica) campaign(ctx context.Context, session string) error {
	if r.isRetired() {
		return nil
	}
	ok, _, err := r.store.client.KV().Acquire(&consul.KVPair{Key: r.leaderKey(), Value: []byte(r.ID), Session: session},
		(&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return unavailable(err)
	}
	r.mu.Lock()
	retired := r.retired
	leads := ok && !retired
	if leads != r.leader {
		r.log.Info("leadership changed", "leader", leads)
	}
	r.leader = leads
	r.mu.Unlock()
	if ok && retired { // meanwhile
		return r.release(ctx, session)
	}
	return nil
}

func (r *Replica) hold(session string, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.renewed.IsZero()
	r.session, r.renewed = session, since
	if first {
		close(r.joined)
	}
}

func (r *Replica) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session, r.leader = "", false
}

// leave destroys the session, which deletes the keys bound to it.
func (r *Replica) leave() {
	session, _ := r.current()
	r.drop()
	if session == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := r.store.client.Session().Destroy(session, (&consul.WriteOptions{}).WithContext(ctx)); err != nil {
		r.log.Warn("cannot destroy the consul session; it expires after its TTL", "error", err)
	}
}

func (r *Replica) key() string       { return r.store.prefix + "replicas/" + r.ID }
func (r *Replica) leaderKey() string { return r.store.prefix + "leader" }
