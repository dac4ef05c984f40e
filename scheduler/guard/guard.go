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
	// guardEvery is how often the deployment's record is read in Consul, and
	// witnessEvery in Vault.
	guardEvery   = time.Second
	witnessEvery = 5 * time.Second
	// epochEvery is how often a leader raises the epoch while its term lasts: a store
	// that goes back by more than that shows it by the epoch.
	epochEvery = 30 * time.Second
	// challengeWait is how long a service whose registry is not the one that Vault
	// names waits for a word of that one: each of its replicas looks every
	// witnessEvery, and one call may take callTimeout.
	challengeWait = 20 * time.Second
	// retireWithin bounds the last word of a leader that stops.
	retireWithin = 4 * time.Second
	// recoverWait is how long a change waits for a registry that is being rebuilt.
	recoverWait = 10 * time.Second
	// suspectsRead bounds how many secrets without a row are read to confirm that
	// rows are missing: one is enough.
	suspectsRead = 64
)

// Guard knows which deployment this is, and whether its registry is whole. Every
// replica has one. What is handed out is handed out only while it says so: each
// claim is checked, in its own transaction, against the record that the guard
// follows.
type Guard struct {
	d   Deps
	log hclog.Logger

	mu       sync.Mutex
	record   *registry.Deployment // as it was read last; nil: never
	verified bool                 // by this replica, since anything last spoke against it
	failed   error                // why the last look came to nothing
	mount    bool                 // the keys in Vault are surely this deployment's
	changed  chan struct{}        // closed when any of it changes
	term     bool                 // this replica leads, and has raised the epoch
	back     string               // what shows that Consul went back; "": nothing

	wake chan struct{} // something speaks against the registry

	// Only Run uses these.
	witness  time.Time // when Vault's record was last read
	began    time.Time // when the epoch was raised last
	nonce    string    // of a challenge of ours
	deadline time.Time
}

// New returns a guard; Run makes it work.
func New(d Deps) *Guard {
	return &Guard{d: d, log: d.Log.Named("registry"), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// ID is the deployment's id; "" while it is not known.
func (g *Guard) ID() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.record == nil {
		return ""
	}
	return g.record.ID
}

// Current is the deployment's record as it was read last, or nil.
func (g *Guard) Current() *registry.Deployment {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.record
}

// Run follows the deployment's record until ctx ends. It returns an error only when
// this service must not run here: *ForeignError.
func (g *Guard) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := g.look(ctx)
		var foreign *ForeignError
		if errors.As(err, &foreign) {
			return foreign
		}
		if err != nil && ctx.Err() == nil {
			g.log.Debug("the deployment's record was not confirmed; trying again", "error", err)
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

// wait is how long until the next look: a short time while a replica begins, for
// everything waits for it.
func (g *Guard) wait(err error) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.verified && (err == nil || errors.Is(err, registry.ErrNoSession)) {
		return guardEvery / 10
	}
	return guardEvery
}

// look reads what the stores say now, and acts on it.
func (g *Guard) look(ctx context.Context) error {
	select {
	case <-g.d.Replica.Joined():
	default:
		return registry.ErrNoSession
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

// take takes over the record that was read.
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
		g.distrust("the deployment's record is gone from Consul")
	case record.Epoch < before.Epoch || record.Registry != before.Registry:
		g.wentBack(olderRecord)
	}
	g.mu.Lock()
	g.publish()
	g.mu.Unlock()
}

const olderRecord = "the deployment's record in Consul is an older one"

// wentBack notes what shows that Consul went back.
func (g *Guard) wentBack(why string) {
	g.mu.Lock()
	g.term, g.back = false, why
	g.mu.Unlock()
	g.distrust(why)
}

// endTerm has this replica begin its term as the leader once more.
func (g *Guard) endTerm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term = false
}

// Forward says whether the registry is known to be whole and has surely not gone back by
// now: for what acts by itself on what it has just read.
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

// distrust says that the registry may have gone back: nothing is handed out until
// it was held against its witnesses again.
func (g *Guard) distrust(why string) {
	g.mu.Lock()
	was := g.verified
	g.verified = false
	g.publish()
	g.mu.Unlock()
	if was {
		g.log.Warn("the registry may have gone back in time; it is compared with its witnesses", "why", why)
	}
	g.d.Vault.Forget() // rows of then name keys that are destroyed by now
	g.poke()
}

// Suspect is distrust with a proof in hand: the registry is to be rebuilt.
func (g *Guard) Suspect(why string) {
	g.distrust(why)
	g.d.Background(func(ctx context.Context) {
		if err := g.StartRecovery(ctx, why, false); err != nil && ctx.Err() == nil {
			g.log.Debug("the registry's recovery was not begun; the next comparison does it", "error", err)
		}
	})
}

// poke has the guard look at once.
func (g *Guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
