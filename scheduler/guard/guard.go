package guard

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/registry"
)

const (
	// guardEvery is the interval of reading the deployment's record in Consul, and
	// witnessEvery in Vault.
	guardEvery   = time.Second
	witnessEvery = 5 * time.Second
	// epochEvery is the interval at which a leader increments the epoch: a store that goes
	// back by more than that is detected by the epoch.
	epochEvery = 30 * time.Second
	// challengeWait is how long a service whose registry is not the one in Vault's record
	// waits for a sign of that one: each of its replicas reads the record every
	// witnessEvery, and one call may take callTimeout.
	challengeWait = 20 * time.Second
	// retireWithin limits the last write of a leader that stops.
	retireWithin = 4 * time.Second
	// recoverWait is how long a change waits for a registry that is being rebuilt.
	recoverWait = 10 * time.Second
	// suspectsRead limits how many secrets without a row are read to confirm that rows are
	// missing: one is enough.
	suspectsRead = 64
)

// Guard determines which deployment this is, and whether its registry is complete. Every
// replica has one. Engines are handed out only while the guard allows it: each claim
// checks, in its own transaction, the record that the guard follows.
type Guard struct {
	d   Deps
	log hclog.Logger

	mu       sync.Mutex
	record   *registry.Deployment // as last read; nil: never
	verified bool                 // by this replica, since there was last a sign against it
	failed   error                // error of the last check
	mount    bool                 // whether the keys in Vault certainly belong to this deployment
	changed  chan struct{}        // closed when one of these fields changes
	term     bool                 // whether this replica leads, and has incremented the epoch
	back     string               // sign that Consul went back in time; "": none

	wake chan struct{} // there is a sign against the registry

	// Only Run uses the fields below.
	witness  time.Time // when Vault's record was last read
	began    time.Time // when the epoch was last incremented
	nonce    string    // of this service's own challenge
	deadline time.Time
}

// New returns a Guard. It works while Run runs.
func New(d Deps) *Guard {
	return &Guard{d: d, log: d.Log.Named("registry"), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// ID returns the deployment's id; "" while it is unknown.
func (g *Guard) ID() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.record == nil {
		return ""
	}
	return g.record.ID
}

// Current returns the deployment's record as last read, or nil.
func (g *Guard) Current() *registry.Deployment {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.record
}

// Run follows the deployment's record until ctx ends. It returns an error only if this
// service must not run here: *ForeignError.
func (g *Guard) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := g.look(ctx)
		var foreign *ForeignError
		if errors.As(err, &foreign) {
			return foreign
		}
		if err != nil && ctx.Err() == nil {
			g.log.Debug("cannot confirm the deployment's record; retrying", "error", err)
		}
		g.mu.Lock()
		g.failed = err
		g.publish()
		g.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-g.d.Store.Back():
		case <-time.After(g.wait(err)):
		}
	}
	return nil
}

// wait returns the time until the next check, which is short while a replica starts,
// because everything waits for it.
func (g *Guard) wait(err error) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.verified && (err == nil || errors.Is(err, registry.ErrNoSession)) {
		return guardEvery / 10
	}
	return guardEvery
}

// look reads the records, and acts on them.
func (g *Guard) look(ctx context.Context) error {
	select {
	case <-g.d.Replica.Joined():
	default:
		return g.d.Replica.Absent()
	}
	if why, heard := g.d.Store.WentBack(); why != "" {
		g.wentBack(why)
		heard()
	}
	record, err := g.d.Store.Deployment(ctx)
	if before := g.Current(); err == nil && before != nil && record.Index < before.Index {
		// Perhaps it was written while it was read.
		if record, err = g.d.Store.Deployment(ctx); err == nil && 0 < record.Index && record.Index < before.Index {
			g.wentBack(olderRecord)
		}
	}
	if err != nil {
		return err
	}
	g.take(record)
	g.mu.Lock()
	back := g.back
	g.mu.Unlock()
	if back != "" {
		if err := g.StartRecovery(ctx, back, true); err != nil {
			return err
		}
		g.mu.Lock()
		g.back = ""
		g.mu.Unlock()
	}
	if err := g.compare(ctx); err != nil {
		return err
	}
	return g.verify(ctx)
}

// take stores the record that was read.
func (g *Guard) take(record *registry.Deployment) {
	g.mu.Lock()
	before := g.record
	g.record = record
	g.mu.Unlock()
	if record.State == registry.RegistryRecovering && (before == nil || before.State != record.State) {
		g.d.Store.ForgetCounts()
	}
	switch {
	case before == nil || before.Index == 0:
	case record.Index == 0:
		g.endTerm()
		g.distrust("the deployment's record is missing in Consul")
	case record.Epoch < before.Epoch || record.Registry != before.Registry:
		g.wentBack(olderRecord)
	}
	g.mu.Lock()
	g.publish()
	g.mu.Unlock()
}

const olderRecord = "the deployment's record in Consul is an older one"

// wentBack records a sign that Consul went back in time.
func (g *Guard) wentBack(why string) {
	g.mu.Lock()
	g.term, g.back = false, why
	g.mu.Unlock()
	g.distrust(why)
}

// endTerm makes this replica begin its term as the leader again.
func (g *Guard) endTerm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term = false
}

// Forward reports whether the registry is known to be complete and has certainly not gone
// back in time, for actions of the service itself on what it has just read.
func (g *Guard) Forward(ctx context.Context) bool {
	before := g.Current()
	if !g.OK() || g.d.Rows.Confirm(ctx) != nil {
		g.poke()
		return false
	}
	record, err := g.d.Store.Deployment(ctx)
	if err != nil || record.Index < before.Index {
		g.poke()
		return false
	}
	return g.OK()
}

// distrust records that the registry may have gone back in time: nothing is handed out
// until it was compared with its witnesses again.
func (g *Guard) distrust(why string) {
	g.mu.Lock()
	was := g.verified
	g.verified = false
	g.publish()
	g.mu.Unlock()
	if was {
		g.log.Warn("the registry may have gone back in time; comparing it with its witnesses", "why", why)
	}
	g.d.Vault.Forget() // outdated rows may name keys that have been destroyed since
	g.poke()
}

// Suspect is like distrust, with a proof: the registry must be rebuilt.
func (g *Guard) Suspect(why string) {
	g.distrust(why)
	g.d.Background(func(ctx context.Context) {
		if err := g.StartRecovery(ctx, why, false); err != nil && ctx.Err() == nil {
			g.log.Debug("cannot begin the registry's recovery; the next comparison does it", "error", err)
		}
	})
}

// poke makes the guard check at once.
func (g *Guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
