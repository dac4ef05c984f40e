package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// Quarantine lists the engines whose owner only an admin can decide, oldest first.
func (s *Scheduler) Quarantine(ctx context.Context) ([]*registry.Quarantined, error) {
	list, err := s.store.Quarantine(ctx)
	slices.SortFunc(list, func(a, b *registry.Quarantined) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.EngineID, b.EngineID))
	})
	return list, err
}

var errNotQuarantined = engine.Errorf(engine.QuarantineNotFound, "no engine with this engine_id is quarantined")

// quarantined returns the record of one engine. QUARANTINE_NOT_FOUND.
func (s *Scheduler) quarantined(ctx context.Context, engineID string) (*registry.Quarantined, error) {
	list, err := s.store.Quarantine(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(q *registry.Quarantined) bool { return q.EngineID == engineID })
	if i < 0 {
		return nil, errNotQuarantined
	}
	return list[i], nil
}

// Adopt gives a quarantined engine to the user that its witnesses name or, if they name
// none, to the one that the admin names. The engine gets a new row; its brain is not
// touched.
//
// QUARANTINE_NOT_FOUND. PRODUCT_NOT_FOUND: the owner is unknown, or the product no longer
// exists. ENGINE_ALREADY_EXISTS: the user has another engine, which must be destroyed
// first. INVALID_REQUEST: the witnesses name another user, or there is more than one
// volume.
func (s *Scheduler) Adopt(ctx context.Context, engineID, productID, userID string) (*engine.Row, error) {
	q, err := s.quarantined(ctx, engineID)
	if err != nil {
		return nil, err
	}
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	f, err := s.reconcile.Find(ctx, engineID)
	if err != nil {
		return nil, err
	}
	e, err := s.reconcile.Evidence(ctx, f, nil)
	if err != nil {
		return nil, err
	}
	owner, err := s.adopter(e, productID, userID)
	if err != nil {
		return nil, err
	}
	if e.Brain() == nil {
		return nil, engine.Errorf(engine.InvalidRequest, "%d volumes have the name of engine %s; there must be exactly one", e.Volumes(), engineID)
	}
	began := time.Now()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), ProductID: owner.ProductID, UserID: owner.UserID, EngineID: engineID, Action: audit.ActionAdopt, Actor: adminActor(ctx),
		RequestID: operation.RequestID(ctx), Metadata: map[string]any{"why": q.Why},
	})
	if err != nil {
		return nil, err
	}
	row, err := s.adoptAs(ctx, q, e, owner)
	s.abandon(ctx, id, began, err)
	return row, err
}

// adopter returns the new owner of a quarantined engine.
func (s *Scheduler) adopter(e *witness.Evidence, productID, userID string) (secrets.Owner, error) {
	var owner secrets.Owner
	owner.ProductID, owner.UserID = e.User()
	switch {
	case owner.ProductID == "" && productID == "":
		return owner, engine.Errorf(engine.ProductNotFound, "no witness names the owner of engine %s: give its product_id and user_id", e.ID())
	case productID != "" && owner.ProductID != "" && (owner.ProductID != productID || owner.UserID != userID):
		return owner, engine.Errorf(engine.InvalidRequest, "engine %s belongs to user %q of product %s according to its witnesses", e.ID(), owner.UserID, owner.ProductID)
	case owner.ProductID == "":
		owner.ProductID, owner.UserID = productID, userID
	}
	// A user whose id was valid in an earlier version keeps its engine.
	if err := engine.CheckUserID(owner.UserID); err != nil && !errors.Is(err, engine.ErrDotSegment) {
		return owner, engine.Errorf(engine.InvalidRequest, "%v", err)
	}
	owner.Deployment, owner.EngineID = s.guard.ID(), e.ID()
	return owner, nil
}

func (s *Scheduler) adoptAs(ctx context.Context, q *registry.Quarantined, e *witness.Evidence, owner secrets.Owner) (*engine.Row, error) {
	t, err := s.Product(ctx, owner.ProductID)
	if err != nil {
		return nil, err
	}
	has, err := s.store.Engine(ctx, owner.ProductID, owner.UserID)
	var damaged *registry.Unreadable
	if errors.As(err, &damaged) && !damaged.Newer { // it is overwritten
		has, err = &engine.Row{Index: damaged.Index, Reason: engine.ReasonBrainMissing}, nil
	}
	switch {
	case err == nil && has.EngineID == e.ID():
		has = nil // its own row: only the record must be deleted
	case err == nil && has.Reason != engine.ReasonBrainMissing:
		return nil, engine.Errorf(engine.EngineAlreadyExists, "the user already has engine %s; destroy it first, or discard this one", has.EngineID)
	case err != nil && !errors.Is(err, registry.ErrNotFound):
		return nil, err
	}
	// The secret is written first, because the row makes its key available.
	if err := s.ownSecret(ctx, e, owner); err != nil {
		return nil, err
	}
	row := e.Rebuilt(owner, time.Now().UTC())
	row.ProductSlug = t.Slug
	if row.Image == "" {
		if row.Image, err = s.allowedImage(t.Product, ""); err != nil {
			return nil, err
		}
		row.Resources, row.NodePool = s.resources(t.Policy), t.Policy.NodePool
	}
	strangers, err := s.strangers(ctx, owner)
	if err != nil {
		return nil, err
	}
	s.settled(e.ID())
	if err := s.putAdopted(ctx, t.Product, row, has, strangers); !errors.Is(err, registry.ErrExists) {
		return row, err
	}
	if row, err = s.store.Engine(ctx, owner.ProductID, owner.UserID); err != nil {
		return nil, err
	}
	return row, errors.Join(s.dropStrangers(ctx, strangers), s.release(ctx, q))
}

// putAdopted writes the row of an adopted engine in place of its user's row (nil: there is
// none), and removes the rows of strangers that name the engine: the first of them in the
// same transaction. ErrExists: the user has a row of this engine.
func (s *Scheduler) putAdopted(ctx context.Context, product *engine.Product, row, has *engine.Row, strangers []*engine.Row) (err error) {
	var before *engine.Row
	if len(strangers) > 0 {
		before = strangers[0]
	}
	if has != nil {
		row.Index = has.Index
		err = s.store.Correct(ctx, row, has.EngineID, before)
	} else {
		err = s.store.Rebuild(ctx, product, row, before)
	}
	if err != nil || before == nil {
		return err
	}
	return s.dropStrangers(ctx, strangers[1:])
}

// ownSecret writes the owner into an engine's secret. A lost secret is created again, and
// the engine gets the new key at its next start or re-key.
func (s *Scheduler) ownSecret(ctx context.Context, e *witness.Evidence, owner secrets.Owner) error {
	k := &secrets.EngineKey{Key: secrets.NewEngineKey(), ID: secrets.NewKeyID()}
	newest, err := s.vault.NewestVersion(ctx, e.ID())
	if err != nil {
		return err
	}
	if now, _ := e.Current(); now != nil {
		if now.Owner == owner {
			return nil
		}
		k.Key, k.ID = now.Key, cmp.Or(now.ID, k.ID)
	}
	k.Owner = owner
	if err := s.vault.PutEngineKey(ctx, e.ID(), k, newest); err != nil {
		return err
	}
	e.Own(k)
	return nil
}

// Discard permanently removes a quarantined engine: its process, job, volume, variable and
// key, and the row that names it, if there is one.
//
// QUARANTINE_NOT_FOUND. STOP_UNCONFIRMED: its node does not confirm that the process has
// ended; nothing else was removed.
func (s *Scheduler) Discard(ctx context.Context, engineID string) error {
	q, err := s.quarantined(ctx, engineID)
	if err != nil {
		return err
	}
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return err
	}
	f, err := s.reconcile.Find(ctx, engineID)
	if err != nil {
		return err
	}
	began := time.Now()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), ProductID: q.ProductID, UserID: q.UserID, EngineID: engineID, Action: audit.ActionDiscard, Actor: adminActor(ctx),
		RequestID: operation.RequestID(ctx), Metadata: map[string]any{"why": q.Why, "what": f.Parts()},
	})
	if err != nil {
		return err
	}
	err = s.reconcile.Clear(ctx, f)
	if errors.Is(err, context.DeadlineExceeded) {
		err = &engine.Error{Code: engine.StopUnconfirmed, Message: "the engine's node does not confirm that its process has ended; nothing else was removed; retry later", Err: err}
	}
	if err == nil {
		err = s.missing(ctx, engineID)
	}
	if err == nil {
		err = s.release(ctx, q)
	}
	s.abandon(ctx, id, began, err)
	return err
}

// missing marks the rows that name a discarded engine as rows whose engine no longer exists.
func (s *Scheduler) missing(ctx context.Context, engineID string) error {
	rows, err := s.namesakes(ctx, engineID)
	for _, row := range rows {
		err = errors.Join(err, s.missingIn(ctx, row, engineID))
	}
	return err
}

func (s *Scheduler) missingIn(ctx context.Context, seen *engine.Row, engineID string) (err error) {
	for range maxClaims { // meanwhile the monitor may write that the process is gone
		row, rerr := s.store.Engine(ctx, seen.ProductID, seen.UserID)
		if errors.Is(rerr, registry.ErrNotFound) {
			return nil
		}
		if rerr != nil || row.EngineID != engineID {
			return rerr
		}
		row.State, row.Desired, row.Reason = engine.Failed, engine.Stopped, engine.ReasonBrainMissing
		row.Op, row.Restarts, row.Frozen, row.URL, row.AllocID, row.KeyVersion, row.KeyID = nil, nil, nil, "", "", 0, ""
		if err = s.store.Correct(ctx, row, engineID, nil); !errors.Is(err, registry.ErrConflict) {
			return err
		}
	}
	return err
}
