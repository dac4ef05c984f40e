package guard

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/registry"
)

// verify compares the registry with the secrets in Vault, once. An engine that has a user
// there but is missing here shows that rows are missing; one whose volume is still pooled
// here shows that the registry is outdated. The list of secrets is read before the
// registry, so that engines created meanwhile are not considered missing.
func (g *Guard) verify(ctx context.Context) error {
	record := g.Current()
	g.mu.Lock()
	done := g.verified
	g.mu.Unlock()
	if done || record.Index == 0 || record.ID == "" || record.State != registry.RegistryOK {
		return nil
	}
	ids, err := g.d.Vault.EngineIDs(ctx)
	if err != nil {
		return err
	}
	pooled, err := g.d.Store.PoolIDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if pooled[id] { // the pool entry is deleted before the key is written
			return g.StartRecovery(ctx, "engine "+id+" has a key in Vault, but its volume is pooled in Consul", false)
		}
	}
	held, err := g.d.Store.Traces(ctx)
	if err != nil {
		return err
	}
	read := 0
	for _, id := range ids {
		if held[id] {
			continue
		}
		if read++; read > suspectsRead {
			break // these are leftovers; reconcile reads all of them
		}
		lost, err := g.d.Lost(ctx, id)
		if err != nil {
			return err
		}
		if lost {
			return g.StartRecovery(ctx, "engine "+id+" has a user in Vault but no row in Consul", false)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verified = true
	g.publish()
	return nil
}

// StartRecovery records in the deployment's record that the registry must be rebuilt; back:
// the whole registry is an older one.
func (g *Guard) StartRecovery(ctx context.Context, why string, back bool) error {
	for {
		record, err := g.d.Store.Deployment(ctx)
		if err != nil {
			return err
		}
		if record.Index == 0 || record.State == registry.RegistryRecovering && (record.Back || !back) {
			g.take(record)
			return nil
		}
		err = g.startRecoveryAt(ctx, record, why, back)
		if !errors.Is(err, registry.ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
}

// startRecoveryAt is StartRecovery by check-and-set on the record that was read. ErrConflict:
// it has changed.
func (g *Guard) startRecoveryAt(ctx context.Context, record *registry.Deployment, why string, back bool) error {
	record.State, record.Why, record.Since, record.Back = registry.RegistryRecovering, why, time.Now().UTC(), record.Back || back
	if err := g.d.Store.PutDeployment(ctx, record); err != nil {
		return err
	}
	what := "the registry lost rows"
	if back {
		what = "the registry went back in time"
	}
	g.log.Error(what+"; rebuilding it from its witnesses in Vault and Nomad", "why", why)
	g.take(record)
	return nil
}

// EndRecovery records, as the leader, that the registry is complete again.
func (g *Guard) EndRecovery(ctx context.Context, record *registry.Deployment, done registry.Recovery) error {
	next := *record
	next.State, next.Why, next.Since, next.Back = registry.RegistryOK, "", time.Time{}, false
	next.Last = &done
	if err := g.d.Store.LeadDeployment(ctx, &next); err != nil {
		return err
	}
	g.mu.Lock()
	g.verified = true // every engine was just compared
	g.mu.Unlock()
	g.take(&next)
	return nil
}

// NoteKeys records in the deployment's record, as the leader, how many engines have lost
// their key; 0: Vault is complete again.
func (g *Guard) NoteKeys(ctx context.Context, missing int) error {
	record := g.Current()
	if record == nil || record.KeysMissing == missing && (record.KeysLost == nil || missing > 0) {
		return nil
	}
	next := *record
	next.KeysMissing = missing
	if missing == 0 {
		next.KeysLost = nil
	}
	err := g.d.Store.LeadDeployment(ctx, &next)
	if errors.Is(err, registry.ErrConflict) {
		return nil // another replica has changed it; the next pass retries
	}
	if err != nil {
		return err
	}
	g.take(&next)
	return nil
}
