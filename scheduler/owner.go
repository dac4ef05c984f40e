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
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

// ownerOf is what the secret of a row's engine says of whose it is.
func (s *Scheduler) ownerOf(row *engine.Row) secrets.Owner {
	return secrets.Owner{Deployment: s.guard.ID(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
}

// newKey is a key for a row's engine, as an operation writes it.
func (o *operation) newKey() *secrets.EngineKey {
	return &secrets.EngineKey{Key: secrets.NewEngineKey(), ID: secrets.NewKeyID(), Owner: o.s.ownerOf(o.row), Operation: o.opID}
}

// isOwn says whether a secret was written by this very operation for its row.
func (o *operation) isOwn(k *secrets.EngineKey) bool {
	return k.Owner == o.s.ownerOf(o.row) && k.Operation == o.opID
}

// agree says whether a secret and a row are of one owner. A secret that names none
// was written by a version of the service that knew no owners: it says nothing
// against the row.
func (s *Scheduler) agree(k *secrets.EngineKey, row *engine.Row) bool {
	return k.Owner == secrets.Owner{} || k.Owner == s.ownerOf(row)
}

// secret reads the secret that a row names. ENGINE_QUARANTINED: it is somebody
// else's, and nobody is told it.
func (s *Scheduler) secret(ctx context.Context, row *engine.Row) (*secrets.EngineKey, error) {
	if why, _ := s.store.WentBack(); why != "" {
		s.vault.Forget() // the row may name a key that was destroyed since
	}
	k, err := s.vault.EngineKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
	if err != nil {
		return nil, err
	}
	if !s.agree(k, row) {
		return nil, s.contradiction(ctx, row, k.Owner)
	}
	if (k.Owner == secrets.Owner{}) {
		err = s.notTwin(ctx, row)
	}
	return k, err
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
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting; try again", RetryAfter: retryBackend}
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
	s.background(func(ctx context.Context) {
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
		RequestID: RequestID(ctx), Metadata: map[string]any{"why": q.Why, "what": q.What},
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
func (o *operation) handedOut(ctx context.Context) (what string, err error) {
	id := o.row.JobID()
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
		v, err := o.s.cluster.Volume(ctx, o.row.VolumeID)
		if err == nil && (v.Name != id || v.NodeID != o.row.NodeID) {
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
func (o *operation) burn(what string) error {
	o.log.Error("what was to be handed out was handed out before, and is left to whom it belongs", "what", what)
	if what != goneVolume {
		o.s.guard.Suspect("engine " + o.row.EngineID + " was to be handed out a second time: it has " + what)
	}
	o.row.Op.Step = stepBurn
	return errDetour
}

// newIdentity gives a provision whose engine_id was burnt another one, on a node
// that has room. Nothing of the old one is touched: what it has is whose it is, and
// reconcile gives that user the row back.
func (o *operation) newIdentity(ctx context.Context) error {
	if err := o.s.guard.Await(ctx); err != nil {
		return err
	}
	place, err := o.s.choose(ctx, o.row.NodePool, o.row.Resources, 1, nil)
	if err != nil {
		return err
	}
	hitStep(o.row.Op.Kind, o.row.Op.Step, atDone)
	err = o.reidentify(ctx, place)
	if errors.Is(err, errRelocated) {
		// Whose it is has it back the sooner.
		if rerr := o.s.store.RequestReconcile(ctx); rerr != nil {
			o.log.Debug("the leader was not asked for a pass", "error", rerr)
		}
	}
	return err
}

// reidentify gives the row the identity that comes with a place.
func (o *operation) reidentify(ctx context.Context, place *place) error {
	next := o.row.Clone()
	place.applyTo(next)
	next.KeyVersion, next.KeyID, next.AllocID, next.URL = 0, "", "", ""
	next.Warm, next.Unlabelled, next.EnvVersion, next.RestartedFor, next.Crash = "", false, 0, 0, 0
	next.Op.JobIndex, next.Op.KeyVersion, next.Op.KeyID = 0, 0, ""
	if o.row.ProductID == engine.WarmProduct {
		next.Warm = o.row.Warm
	}
	if err := o.s.store.Reidentify(ctx, o.row.EngineID, next, place.pooled); err != nil {
		o.s.pool.Release(place.pooled)
		if errors.Is(err, registry.ErrConflict) {
			now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
			return o.lost(ctx, now, err)
		}
		return err
	}
	o.s.pool.Claimed(place.pooled)
	o.log.Info("placing the engine under another id", "node", next.NodeID, "now", next.EngineID)
	o.row, o.quietAt, o.refusedAt = next, 0, 0
	return errRelocated
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
func (o *operation) releaseForeign(ctx context.Context) (bool, error) {
	k, err := o.s.vault.NewestKey(ctx, o.row.EngineID)
	what := ""
	switch {
	case err == nil && k.Owner == o.s.ownerOf(o.row):
		return false, o.s.notTwin(ctx, o.row)
	case err == nil && o.row.KeyVersion == 0 && o.s.isWarm(k, o.row):
		return false, nil // it was claimed, and not made the user's yet
	case err == nil && (k.Owner != secrets.Owner{} || o.row.KeyVersion == 0):
		what = "a key"
	case err != nil && !errors.Is(err, secrets.ErrNotFound):
		return false, err
	case o.row.KeyVersion == 0:
		if what, err = o.handedOut(ctx); err != nil {
			return false, err
		}
		if what == goneVolume {
			what = ""
		}
	}
	if what != "" {
		o.log.Error("an engine that is to be destroyed is another user's by its witnesses: its row goes, what belongs to that user stays", "what", what)
	}
	if what == "" {
		return false, o.s.notTwin(ctx, o.row)
	}
	return true, nil
}

// releaseRow leads to the step that removes the row alone.
func (o *operation) releaseRow() {
	o.row.VolumeID = "" // it leaves nothing behind that is the row's
	steps := plans[engine.OpDestroy]
	o.row.Op.Step = steps[len(steps)-1].name
}

// goneVolume is what a pool entry has whose volume somebody deleted.
const goneVolume = "a volume that is gone"
