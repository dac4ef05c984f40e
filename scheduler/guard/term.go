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

// The moments between the two writes of an epoch, at which a test can end the process:
// the registry says which epoch is to come, and Vault has it.
const (
	PointMeant  = "epoch/meant"
	PointRaised = "epoch/raised"
)

// compare holds the record against Vault's from time to time: it refuses those who
// want this deployment's keys, and begins the term of a new leader.
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
	if here.ID != "" && here.ID == there.ID && here.Registry == there.Registry && there.Challenge != "" {
		g.log.Error("another service with another registry (Consul) wants the keys of this deployment; it is refused", "deployment", there.ID)
		there.Challenge = ""
		if err := g.d.Vault.PutDeployment(ctx, there); err != nil && !errors.Is(err, secrets.ErrConflict) {
			return err
		}
	}
	if !leads && here.ID != "" && there.ID != "" && here.ID != there.ID {
		return &ForeignError{Ours: here.ID, Theirs: there.ID, Mount: g.d.Vault.Mount(), Where: g.d.Where, TheirWhere: there.Where}
	}
	verdict := compare(here, there, g.d.Where)
	// Whoever comes first begins a new deployment: beside a leader of a version that
	// knew none, too.
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

// Owned returns nil when the keys in Vault are surely this deployment's.
func (g *Guard) Owned() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mount {
		return nil
	}
	err := fmt.Errorf("%w: whether its mount is this deployment's was not read yet", secrets.ErrUnavailable)
	if g.failed != nil {
		err = fmt.Errorf("%w: %w", err, g.failed)
	}
	return err
}

// begin begins a term, or the next epoch of one: it holds the two records against each
// other, and writes the next epoch into both.
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
		recovering("Consul has no record of this deployment, and Vault has its keys")
	case lineageBehind:
		recovering(fmt.Sprintf("the epoch in Consul is %d, and in Vault %d", here.Epoch, there.Epoch))
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

// raise writes the next epoch into both stores. The registry says first which epoch is
// to come: whoever finds that one in Vault knows that a leader died in between, and
// that nothing went back.
func (g *Guard) raise(ctx context.Context, next registry.Deployment, there *secrets.Deployment, leads bool) error {
	put := g.d.Store.LeadDeployment
	if !leads && next.Epoch == 0 { // of a new deployment
		put = g.d.Store.PutDeployment
	}
	epoch := max(next.Epoch, next.Raising, there.Epoch) + 1
	if next.Epoch > 0 {
		// What a leader that died left half done is done with this write.
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

// Retire raises the epoch once more before a leader stops, so that a registry which is
// restored while no replica runs is known to be behind.
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
		g.log.Debug("the epoch was not raised before this leader stops", "error", err)
	}
}

var errChallenged = errors.New("waiting for a word of the registry that Vault names")

// challenge finds out whether the registry that Vault names is alive, when it is
// not this one. nil: nobody answered in time. *ForeignError: it is.
func (g *Guard) challenge(ctx context.Context, here *registry.Deployment, there *secrets.Deployment) error {
	now := time.Now()
	switch {
	case g.nonce == "":
		g.nonce, g.deadline = g.d.NewID(), now.Add(challengeWait)
		g.log.Warn("Vault names another registry (Consul) than this one; asking whether that one is alive", "deployment", there.ID, "for", challengeWait.String())
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
