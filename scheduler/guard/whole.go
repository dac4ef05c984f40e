package guard

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/registry"
)

// publish allows or refuses claims. The caller holds the lock.
func (g *Guard) publish() {
	var follow *registry.Deployment
	if g.verified && g.record != nil && g.record.Index != 0 && g.record.State == registry.RegistryOK {
		follow = g.record
	}
	g.d.Store.Follow(follow)
	close(g.changed)
	g.changed = make(chan struct{})
}

// whole reports whether the registry is known to be complete, and if not, why.
func (g *Guard) whole() (ok bool, changed <-chan struct{}, err error) {
	why, _ := g.d.Store.WentBack()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case why != "": // and Run has not handled it yet
		return false, g.changed, g.d.Recovering
	case g.record != nil && g.record.Index != 0 && g.record.State == registry.RegistryRecovering:
		return false, g.changed, g.d.Recovering
	case g.record == nil || g.record.Index == 0 || !g.verified:
		if g.failed != nil {
			return false, g.changed, g.failed
		}
		return false, g.changed, g.d.Recovering
	}
	return true, g.changed, nil
}

// OK reports whether the registry is known to be complete now.
func (g *Guard) OK() bool {
	ok, _, _ := g.whole()
	return ok
}

// Await waits until the registry is known to be complete. REGISTRY_RECOVERING: it was not
// within recoverWait. BACKEND_UNAVAILABLE: a store that is needed for that is unavailable.
func (g *Guard) Await(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	for {
		ok, changed, err := g.whole()
		if ok {
			return nil
		}
		// An unavailable store is reported at once, as everywhere.
		if g.d.Away(err) && !errors.Is(err, registry.ErrNoSession) {
			return err
		}
		select {
		case <-changed:
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
}

// Again reads the record at once, after a claim was refused because it had changed, and
// waits until the registry is known to be complete. The errors are those of Await.
func (g *Guard) Again(ctx context.Context) error {
	g.mu.Lock()
	changed := g.changed
	g.mu.Unlock()
	g.poke()
	select {
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(guardEvery):
	}
	return g.Await(ctx)
}
