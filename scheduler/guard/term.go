package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// The moments between the writes of an epoch at which a test can end the process: the
// registry contains the next epoch, and Vault has it.
const (
	PointMeant  = "epoch/meant"
	PointRaised = "epoch/raised"
)

// compare regularly compares the record with Vault's: it refuses services that want this
// deployment's keys, and begins the term of a new leader.
func (g *Guard) compare(ctx context.Context) error {
	leads := g.d.Replica.Leader()
	g.mu.Lock()
	g.term = g.term && leads
	term := g.term
	g.mu.Unlock()
	if (term || !leads) && time.Since(g.witness) < witnessEvery {
		return nil
	}
	there, err := g.d.Vault.Deployment(ctx)
	if err != nil {
		return err
	}
	here := g.Current()
	if here.ID == "" && there.ID != "" {
		// Another replica may have begun the deployment since. It writes Consul's record
		// first, so that only a second look shows that Consul has none.
		if here, err = g.d.Store.Deployment(ctx); err != nil {
			return err
		}
		if here.ID != "" {
			g.take(here)
		}
	}
	if here.ID != "" && here.ID == there.ID && here.Registry == there.Registry && there.Challenge != "" {
		g.log.Error("refusing another service with another registry (Consul) that wants the keys of this deployment", "deployment", there.ID)
		there.Challenge = ""
		if err := g.d.Vault.PutDeployment(ctx, there); err != nil && !errors.Is(err, secrets.ErrConflict) {
			return err
		}
	}
	if !leads && here.ID != "" && there.ID != "" && here.ID != there.ID {
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.d.Vault.Mount(), Where: g.d.Where, TheirWhere: there.Where}
	}
	verdict := compare(here, there, g.d.Where)
	if !leads && (verdict == lineageBehind || verdict == lineageLost) {
		// Perhaps a leader has written both meanwhile. Otherwise this replica must not trust the
		// registry until a leader compares the two, which takes 20 s if the backup has the lock
		// of a leader that is gone.
		if here, err = g.d.Store.Deployment(ctx); err != nil {
			return err
		}
		g.take(here)
		switch verdict = compare(here, there, g.d.Where); verdict {
		case lineageBehind:
			if here.State == registry.RegistryRecovering && here.Back {
				return nil
			}
			// On exactly this record: a leader may have rebuilt the registry since.
			next := *here
			err := g.startRecoveryAt(ctx, &next, behindVault(here, there), true)
			if errors.Is(err, registry.ErrConflict) {
				err = g.d.Recovering // it is compared again
			}
			return err
		case lineageLost: // only a leader can find out whether another registry is in use
			return g.d.Recovering
		}
	}
	// Any replica may begin a new deployment, even beside a leader of an earlier version
	// without records.
	if !leads && verdict != lineageNew || term && time.Since(g.began) < epochEvery && verdict == lineageSame {
		g.witness = time.Now()
	} else if err := g.begin(ctx, here, there); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mount = g.record.ID != ""
	return nil
}

func behindVault(here *registry.Deployment, there *secrets.Deployment) string {
	return fmt.Sprintf("the epoch is %d in Consul, but %d in Vault", here.Epoch, there.Epoch)
}

// Owned returns nil if the keys in Vault certainly belong to this deployment.
func (g *Guard) Owned() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mount {
		return nil
	}
	err := fmt.Errorf("%w: it has not been verified yet that the mount belongs to this deployment", secrets.ErrUnavailable)
	if g.failed != nil {
		err = fmt.Errorf("%w: %w", err, g.failed)
	}
	return err
}

// begin begins a term, or its next epoch: it compares the two records, and writes the next
// epoch into both.
func (g *Guard) begin(ctx context.Context, here *registry.Deployment, there *secrets.Deployment) error {
	next, now := *here, time.Now().UTC()
	recovering := func(why string) {
		next.Back = true
		if next.State != registry.RegistryRecovering {
			next.State, next.Why, next.Since = registry.RegistryRecovering, why, now
			g.log.Error("the registry went back in time; rebuilding it from its witnesses in Vault and Nomad", "why", why)
		}
	}
	keysLost := func() {
		if next.KeysLost == nil {
			next.KeysLost = &now
			g.log.Error("Vault went back in time: engines may have lost their keys; `orch registry status` counts them, `orch engine rekey` gives them new ones")
		}
	}
	switch verdict := compare(here, there, g.d.Where); verdict {
	case lineageForeign:
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.d.Vault.Mount(), Where: g.d.Where, TheirWhere: there.Where}
	case lineageNew:
		next = registry.Deployment{ID: g.d.NewID(), Registry: g.d.NewID(), State: registry.RegistryOK, Index: here.Index}
	case lineageLost:
		if err := g.challenge(ctx, here, there); err != nil {
			return err
		}
		if next.Registry == "" {
			next = registry.Deployment{ID: there.ID, Registry: g.d.NewID(), Index: here.Index}
		}
		recovering("Consul has no record of this deployment, but Vault has its keys")
	case lineageBehind:
		recovering(behindVault(here, there))
	case lineageKeysBehind:
		keysLost()
	case lineageSame:
	}
	leads := g.d.Replica.Leader()
	if err := g.raise(ctx, next, there, leads); err != nil {
		return err
	}
	g.witness, g.began, g.nonce = time.Now(), time.Now(), ""
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term = leads
	return nil
}

// raise writes the next epoch into both stores. It first records in the registry which
// epoch comes next: a replica that finds that epoch in Vault knows that a leader died in
// between, and that nothing went back in time.
func (g *Guard) raise(ctx context.Context, next registry.Deployment, there *secrets.Deployment, leads bool) error {
	put := g.d.Store.LeadDeployment
	if !leads && next.Epoch == 0 { // of a new deployment
		put = g.d.Store.PutDeployment
	}
	epoch := max(next.Epoch, next.Raising, there.Epoch) + 1
	if next.Epoch > 0 {
		// This write completes what a dead leader left unfinished.
		next.Epoch, next.Raising = max(next.Epoch, there.Epoch), epoch
		meant := next
		if err := put(ctx, &meant); err != nil {
			return err
		}
		next.Index = meant.Index
		g.take(&meant)
		fault.Hit(PointMeant)
	}
	record := &secrets.Deployment{ID: next.ID, Registry: next.Registry, Epoch: epoch, Where: g.d.Where, Version: there.Version}
	if err := g.d.Vault.PutDeployment(ctx, record); err != nil {
		return err
	}
	fault.Hit(PointRaised)
	next.Epoch, next.Raising = epoch, 0
	if err := put(ctx, &next); err != nil {
		return err
	}
	g.take(&next)
	return nil
}

// Retire increments the epoch once more before a leader stops, so that a registry that is
// restored while no replica runs is detected as outdated.
func (g *Guard) Retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, retireWithin)
	defer cancel()
	here := g.Current()
	if here == nil || !g.d.Replica.Leader() || !g.OK() {
		return
	}
	there, err := g.d.Vault.Deployment(ctx)
	if err == nil && compare(here, there, g.d.Where) == lineageSame {
		err = g.raise(ctx, *here, there, true)
	}
	if err != nil {
		g.log.Debug("cannot increment the epoch before this leader stops", "error", err)
	}
}

var errChallenged = errors.New("waiting for a sign of the registry in Vault's record")

// challenge determines whether another registry in Vault's record is in use. nil: nobody
// responded in time. *ForeignError: it is in use.
func (g *Guard) challenge(ctx context.Context, here *registry.Deployment, there *secrets.Deployment) error {
	now := time.Now()
	switch {
	case g.nonce == "":
		g.nonce, g.deadline = g.d.NewID(), now.Add(challengeWait)
		g.log.Warn("Vault's record names another registry (Consul) than this one; checking whether that one is in use", "deployment", there.ID, "for", challengeWait.String())
		there.Challenge = g.nonce
		if err := g.d.Vault.PutDeployment(ctx, there); err != nil {
			g.nonce = ""
			return err
		}
		return errChallenged
	case there.Challenge != g.nonce:
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.d.Vault.Mount(), Where: g.d.Where, TheirWhere: there.Where, Live: true}
	case now.Before(g.deadline):
		return errChallenged
	}
	return nil
}
