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
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

// ownerOf is what the secret of a row's engine says of whose it is.
func (s *Scheduler) ownerOf(row *engine.Row) secrets.Owner {
	return secrets.Owner{Deployment: s.guard.ID(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
}

// newKey is a key for a row's engine, as an operation writes it.
func (o *work) newKey() *secrets.EngineKey {
	return &secrets.EngineKey{Key: secrets.NewEngineKey(), ID: secrets.NewKeyID(), Owner: o.s.ownerOf(o.Row), Operation: o.ID}
}

// isOwn says whether a secret was written by this very operation for its row.
func (o *work) isOwn(k *secrets.EngineKey) bool {
	return k.Owner == o.s.ownerOf(o.Row) && k.Operation == o.ID
}

// agree says whether a secret and a row are of one owner. A secret that names none
// was written by a version of the service that knew no owners: it says nothing
// against the row.
func (s *Scheduler) agree(k *secrets.EngineKey, row *engine.Row) bool {
	return k.Owner == secrets.Owner{} || k.Owner == s.ownerOf(row)
}

// ownerWithin bounds how long a change waits for Vault's word of whose an engine is,
// where that word is all that it needs Vault for.
const ownerWithin = time.Second

// ownedBy returns ENGINE_QUARANTINED when a row's engine is surely somebody else's,
// before anything is done to it. It is a look, and no condition: what discloses a key
// or makes one looks again.
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

var errQuarantined = engine.Errorf(engine.EngineQuarantined, "this engine's key and its row name different owners; it is quarantined until an admin decides (orch engine adopt, orch engine discard)")

// contradiction reports that a row's engine has another owner in Vault: an ERROR,
// an audit row, a record for the admin, and no key for anybody.
func (s *Scheduler) contradiction(ctx context.Context, row *engine.Row, owner secrets.Owner) error {
	if s.guard.ID() == "" { // this replica does not know yet whose deployment it is of
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting; try again", RetryAfter: engine.RetryBackend}
	}
	s.mu.Lock()
	told := s.contradicted[row.EngineID]
	s.contradicted[row.EngineID] = true
	s.mu.Unlock()
	if told {
		return errQuarantined
	}
	s.log.Error("an engine's row and its secret in Vault name different owners; its key is disclosed to nobody", "engine_id", row.EngineID,
		"row_product", row.ProductID, "vault_product", owner.ProductID, "vault_deployment", owner.Deployment)
	s.ops.Background(func(ctx context.Context) {
		err := s.quarantine(ctx, &registry.Quarantined{
			EngineID: row.EngineID, Since: time.Now().UTC(), Why: reconcile.WhyContradiction, What: []string{"row", "key"},
			ProductID: owner.ProductID, UserID: owner.UserID, NodeID: row.NodeID,
		})
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot note a quarantined engine; the next who asks for it tries again", "engine_id", row.EngineID, "error", err)
			s.settled(row.EngineID)
		}
	})
	return errQuarantined
}

// settled forgets that an engine's row and secret disagree: whoever comes upon that again
// tells it again.
func (s *Scheduler) settled(engineID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.contradicted, engineID)
}

// quarantine records an engine that nobody is given, and audits it. One that is
// recorded already stays as it is.
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

// release takes an engine's quarantine away; one that is gone already is no error.
func (s *Scheduler) release(ctx context.Context, q *registry.Quarantined) error {
	err := s.store.DeleteQuarantined(ctx, q)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	return err
}

// handedOut says what shows that an engine_id was given to somebody before this
// operation got it: a job, a variable or a secret that is not its own, or a pooled
// volume that is gone. "": nothing does. Whoever was given it keeps it.
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

// burn turns to the step that gives this identity up: it belongs to somebody, and
// is touched no more. That it came up says that the registry went back in time.
func (o *work) burn(what string) error {
	o.Log.Error("what was to be handed out was handed out before, and is left to whom it belongs", "what", what)
	if what != goneVolume {
		o.s.guard.Suspect("engine " + o.Row.EngineID + " was to be handed out a second time: it has " + what)
	}
	o.Row.Op.Step = stepBurn
	return operation.ErrDetour
}

// newIdentity gives a provision whose engine_id was burnt another one, on a node
// that has room. Nothing of the old one is touched: what it has is whose it is, and
// reconcile gives that user the row back.
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
		// Whose it is has it back the sooner.
		if rerr := o.s.store.RequestReconcile(ctx); rerr != nil {
			o.Log.Debug("the leader was not asked for a pass", "error", rerr)
		}
	}
	return err
}

// reidentify gives the row the identity that comes with a place.
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

// isWarm says whether a secret is that of a row's engine from before a user was
// given it.
func (s *Scheduler) isWarm(k *secrets.EngineKey, row *engine.Row) bool {
	return k.Owner.ProductID == engine.WarmProduct && k.Owner.EngineID == row.EngineID && k.Owner.Deployment == s.guard.ID()
}

// releaseForeign says whether a destroy came upon an engine that is somebody
// else's by its witnesses: then the row alone goes, and nothing that it names. A
// row without a key never got as far as to make a job or a variable: where one
// stands, it is somebody else's.
func (o *work) releaseForeign(ctx context.Context) (bool, error) {
	k, err := o.s.vault.NewestKey(ctx, o.Row.EngineID)
	what := ""
	switch {
	case err == nil && k.Owner == o.s.ownerOf(o.Row):
		return false, o.s.notTwin(ctx, o.Row)
	case err == nil && o.Row.KeyVersion == 0 && o.s.isWarm(k, o.Row):
		return false, nil // it was claimed, and not made the user's yet
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
		o.Log.Error("an engine that is to be destroyed is another user's by its witnesses: its row goes, what belongs to that user stays", "what", what)
	}
	if what == "" {
		return false, o.s.notTwin(ctx, o.Row)
	}
	return true, nil
}

// goneVolume is what a pool entry has whose volume somebody deleted.
const goneVolume = "a volume that is gone"
