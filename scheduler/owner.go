package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// ownerOf returns the owner of a row's engine, in the form for its secret.
func (s *Scheduler) ownerOf(row *engine.Row) secrets.Owner {
	return secrets.Owner{Deployment: s.guard.ID(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
}

// newKey returns a new key for a row's engine, as this operation writes it.
func (o *work) newKey() *secrets.EngineKey {
	return &secrets.EngineKey{Key: secrets.NewEngineKey(), ID: secrets.NewKeyID(), Owner: o.s.ownerOf(o.Row), Operation: o.ID}
}

// isOwn reports whether this operation wrote a secret, for its row.
func (o *work) isOwn(k *secrets.EngineKey) bool {
	return k.Owner == o.s.ownerOf(o.Row) && k.Operation == o.ID
}

// agree reports whether a secret and a row have the same owner. A secret without an owner
// is from an earlier version of the service, and contradicts nothing.
func (s *Scheduler) agree(k *secrets.EngineKey, row *engine.Row) bool {
	return k.Owner == secrets.Owner{} || k.Owner == s.ownerOf(row)
}

// ownerWithin limits how long a change waits for Vault to read an engine's owner, if the
// change needs Vault for nothing else.
const ownerWithin = time.Second

// ownedBy returns ENGINE_QUARANTINED if a row's engine certainly has another owner, before
// anything is done to it. It does not guarantee the owner: code that discloses or creates a
// key checks it again.
func (s *Scheduler) ownedBy(ctx context.Context, row *engine.Row) error {
	limited, cancel := context.WithTimeout(ctx, ownerWithin)
	defer cancel()
	if k, err := s.vault.EngineKey(limited, row.EngineID, row.KeyVersion, row.KeyID); err == nil && !s.agree(k, row) {
		return s.contradiction(ctx, row, k.Owner)
	} else if err == nil && (k.Owner == secrets.Owner{}) {
		return s.notTwin(ctx, row)
	}
	return nil
}

var errQuarantined = engine.Errorf(engine.EngineQuarantined, "the records of this engine name different owners, so it is quarantined until an admin decides (orch engine adopt, orch engine discard)")

// contradiction reports that a row's engine has another owner in Vault: it logs an ERROR,
// writes an audit row and a record for the admin, and nobody gets the key.
func (s *Scheduler) contradiction(ctx context.Context, row *engine.Row, owner secrets.Owner) error {
	if s.guard.ID() == "" { // this replica does not know its deployment yet
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting; retry", RetryAfter: engine.RetryBackend}
	}
	s.mu.Lock()
	told := s.contradicted[row.EngineID]
	s.contradicted[row.EngineID] = true
	s.mu.Unlock()
	if told {
		return errQuarantined
	}
	s.log.Error("an engine's row and its secret in Vault name different owners; nobody gets its key", "engine_id", row.EngineID,
		"row_product", row.ProductID, "vault_product", owner.ProductID, "vault_deployment", owner.Deployment)
	s.ops.Background(func(ctx context.Context) {
		err := s.quarantine(ctx, &registry.Quarantined{
			EngineID: row.EngineID, Since: time.Now().UTC(), Why: witness.WhyContradiction, What: []string{"row", "key"},
			ProductID: owner.ProductID, UserID: owner.UserID, NodeID: row.NodeID,
		})
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot record a quarantined engine; the next call for it retries", "engine_id", row.EngineID, "error", err)
			s.settled(row.EngineID)
		}
	})
	return errQuarantined
}

// settled forgets that the owners of an engine in its row and its secret differ, so that it
// is reported again if it happens again.
func (s *Scheduler) settled(engineID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.contradicted, engineID)
}

// quarantine records an engine that must not be handed out, and audits it. An existing
// record is kept.
func (s *Scheduler) quarantine(ctx context.Context, q *registry.Quarantined) error {
	began := time.Now()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), ProductID: q.ProductID, UserID: q.UserID, EngineID: q.EngineID, Action: audit.ActionQuarantine, Actor: actorSystem,
		RequestID: operation.RequestID(ctx), Metadata: map[string]any{"why": q.Why, "what": q.What},
	})
	if err != nil {
		return err
	}
	err = s.store.PutQuarantined(ctx, q)
	if errors.Is(err, registry.ErrConflict) {
		err = nil
	}
	s.abandon(ctx, id, began, err)
	return err
}

// release removes an engine's quarantine; it is no error if there is none.
func (s *Scheduler) release(ctx context.Context, q *registry.Quarantined) error {
	err := s.store.DeleteQuarantined(ctx, q)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	return err
}

// handedOut returns a sign that an engine_id was given to a user before this operation got
// it: a job, a variable or a secret of another operation, or a pooled volume that no longer
// exists; "": there is none. The earlier user keeps the engine.
func (o *work) handedOut(ctx context.Context) (what string, err error) {
	id := o.Row.JobID()
	var job, variable, volume bool
	work, reading := errgroup.WithContext(ctx)
	there := func(found *bool, read func(context.Context) error) {
		work.Go(func() error {
			err := read(reading)
			if *found = err == nil; errors.Is(err, cluster.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	there(&job, func(ctx context.Context) error { _, err := o.s.cluster.Job(ctx, id); return err })
	there(&variable, func(ctx context.Context) error { _, err := o.s.cluster.Variable(ctx, id); return err })
	there(&volume, func(ctx context.Context) error {
		v, err := o.s.cluster.Volume(ctx, o.Row.VolumeID)
		if err == nil && (v.Name != id || v.NodeID != o.Row.NodeID) {
			err = fmt.Errorf("%w: volume %s is %s on node %s", cluster.ErrNotFound, v.ID, v.Name, v.NodeID)
		}
		return err
	})
	if err := work.Wait(); err != nil {
		return "", err
	}
	switch {
	case job:
		return "a job", nil
	case variable:
		return "a variable", nil
	case !volume:
		return goneVolume, nil
	}
	return "", nil
}

// burn continues at the step that abandons this identity, because it belongs to another
// user. It is not touched any more. This case shows that the registry went back in time.
func (o *work) burn(what string) error {
	o.Log.Error("an engine id was handed out before; its owner keeps it, and this engine gets another id", "what", what)
	if what != goneVolume {
		o.s.guard.Suspect("engine " + o.Row.EngineID + " was about to be handed out a second time: it has " + what)
	}
	o.Row.Op.Step = stepBurn
	return operation.ErrDetour
}

// newIdentity gives a provision whose engine_id was burnt another one, on a node with
// capacity. It touches nothing of the old id; reconcile rebuilds the row of the old id's
// owner.
func (o *work) newIdentity(ctx context.Context) error {
	if err := o.s.guard.Await(ctx); err != nil {
		return err
	}
	place, err := o.s.choose(ctx, o.Row.NodePool, o.Row.Resources, 1, nil)
	if err != nil {
		return err
	}
	operation.HitStep(o.Row.Op, operation.AtDone)
	err = o.reidentify(ctx, place)
	if errors.Is(err, operation.ErrRelocated) {
		// The pass restores the owner's row sooner.
		if rerr := o.s.store.RequestReconcile(ctx); rerr != nil {
			o.Log.Debug("cannot request a pass of the leader", "error", rerr)
		}
	}
	return err
}

// reidentify gives the row the identity of a place.
func (o *work) reidentify(ctx context.Context, place *place) error {
	next := o.Row.Clone()
	place.applyTo(next)
	next.KeyVersion, next.KeyID, next.AllocID, next.URL = 0, "", "", ""
	next.Warm, next.Unlabelled, next.EnvVersion, next.RestartedFor, next.Crash = "", false, 0, 0, 0
	next.Op.JobIndex, next.Op.KeyVersion, next.Op.KeyID = 0, 0, ""
	if o.Row.ProductID == engine.WarmProduct {
		next.Warm = o.Row.Warm
	}
	if err := o.s.store.Reidentify(ctx, o.Row.EngineID, next, place.pooled); err != nil {
		o.s.pool.Release(place.pooled)
		if errors.Is(err, registry.ErrConflict) {
			now, err := o.s.store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
			return o.Lost(ctx, now, err)
		}
		return err
	}
	o.s.pool.Claimed(place.pooled)
	o.Log.Info("placing the engine under another id", "node", next.NodeID, "now", next.EngineID)
	o.Row, o.quietAt, o.refusedAt = next, 0, 0
	return operation.ErrRelocated
}

// isWarm reports whether a secret is that of a row's engine from before the engine was
// given to a user.
func (s *Scheduler) isWarm(k *secrets.EngineKey, row *engine.Row) bool {
	return k.Owner.ProductID == engine.WarmProduct && k.Owner.EngineID == row.EngineID && k.Owner.Deployment == s.guard.ID()
}

// releaseForeign reports whether a destroy has found an engine that has another owner
// according to its witnesses. Then only the row is deleted, and nothing that it names. A
// row without a key never got as far as to create a job or a variable, so if these exist,
// they belong to another user.
func (o *work) releaseForeign(ctx context.Context) (bool, error) {
	k, err := o.s.vault.NewestKey(ctx, o.Row.EngineID)
	what := ""
	switch {
	case err == nil && k.Owner == o.s.ownerOf(o.Row):
		return false, o.s.notTwin(ctx, o.Row)
	case err == nil && o.Row.KeyVersion == 0 && o.s.isWarm(k, o.Row):
		return false, nil // it was claimed, but its secret does not name the user yet
	case err == nil && (k.Owner != secrets.Owner{} || o.Row.KeyVersion == 0):
		what = "a key"
	case err != nil && !errors.Is(err, secrets.ErrNotFound):
		return false, err
	case o.Row.KeyVersion == 0:
		if what, err = o.handedOut(ctx); err != nil {
			return false, err
		}
		if what == goneVolume {
			what = ""
		}
	}
	if what != "" {
		o.Log.Error("an engine that is to be destroyed belongs to another user according to its witnesses: only the row is deleted", "what", what)
	}
	if what == "" {
		return false, o.s.notTwin(ctx, o.Row)
	}
	return true, nil
}

// goneVolume describes a pool entry whose volume was deleted.
const goneVolume = "a volume that no longer exists"
