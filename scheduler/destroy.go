package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// Destroy removes an engine with its brain and key, from any state, and waits
// until nothing is left of it. An operation under way is interrupted. A call that
// finds the engine being destroyed waits for that.
//
// ENGINE_NOT_FOUND. ENGINE_QUARANTINED: another row names the engine, too; nothing was
// removed.
func (s *Scheduler) Destroy(ctx context.Context, caller *Caller) (engineID string, err error) {
	done, record, err := s.recall(ctx, caller, engine.OpDestroy)
	if done != nil {
		return done.EngineID, nil
	}
	if err != nil {
		return "", err
	}
	row, err := caller.engine()
	if err != nil {
		return "", err
	}
	asked := time.Now()
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return "", err
	}
	asking := time.Since(asked)
	var d pendingEntry
	defer func() { s.drop(ctx, &d, err) }()
	for range maxClaims {
		if row.State == engine.Destroying {
			s.drop(ctx, &d, engine.BusyWith(engine.OpDestroy)) // the row of the other one tells it
			return s.awaitDestroyed(ctx, row)
		}
		o, err := s.beginDestroy(ctx, caller, row, &d, record, asking)
		if err == nil {
			gone, err := o.wait(ctx)
			if err != nil {
				return "", err
			}
			return gone.EngineID, nil
		}
		if errors.Is(err, registry.ErrKeyUsed) {
			s.drop(ctx, &d, engine.BusyWith(engine.OpDestroy))
			return s.Destroy(ctx, caller) // the same call is under way: its answer is this one's too
		}
		if !errors.Is(err, registry.ErrConflict) {
			return "", err
		}
		if row, err = s.store.Engine(ctx, row.ProductID, row.UserID); err != nil {
			return "", gone(err)
		}
	}
	return "", engine.BusyWith(engine.OpDestroy)
}

// beginDestroy ends what this replica does to an engine, and writes a destroy over the
// operation that its row carries. registry.ErrConflict: the row is another by now.
func (s *Scheduler) beginDestroy(ctx context.Context, caller *Caller, row *engine.Row, d *pendingEntry, record *engine.IdempotencyRef, asking time.Duration) (*operation, error) {
	cut, other := row.Op, ""
	if cut != nil {
		release, err := s.halt(ctx, row)
		if err != nil {
			return nil, err
		}
		defer release()
		if cut.Owner != s.replica.ID {
			other = cut.Owner
		}
	}
	if err := s.mayDestroy(ctx, row); err != nil {
		return nil, err
	}
	op := s.newOp(ctx, engine.OpDestroy, audit.ActionDestroy, row.State)
	op.Supersedes = other
	row.State, row.Desired = engine.Destroying, engine.Destroying
	if record != nil {
		if other := row.Idempotency; other != nil {
			record.Replaces = other.Key
		}
		row.Idempotency = record
	}
	o, err := s.write(ctx, row, op, d, caller.Product.Slug, nil, asking)
	if err == nil && cut != nil {
		// Nobody else may be there to say so: its replica is gone, or never ran it.
		s.complete(ctx, cut.AuditID, audit.Completion{Outcome: string(engine.EngineBusy), EngineID: row.EngineID, Duration: time.Since(cut.BeganAt)})
	}
	return o, err
}

// halt makes sure that this replica does not run the operation of a row, nor begins to
// before release is called. registry.ErrConflict: it did, and the row is to be read
// again.
func (s *Scheduler) halt(ctx context.Context, row *engine.Row) (release func(), err error) {
	release, under := s.reserveLaunch(row.Op.ID)
	if under != nil { // it is being launched, or its write was refused
		select {
		case <-under:
			return nil, registry.ErrConflict
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	o := s.running(row.ProductID, row.UserID)
	if o == nil {
		return release, nil
	}
	release()
	var soon <-chan time.Time
	if o.began.Kind == engine.OpDestroy { // it began after the row was read, and may take long
		soon = time.After(pollEvery)
	} else {
		o.cancel(errSuperseded)
	}
	select {
	case <-o.ended:
	case <-soon:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return nil, registry.ErrConflict
}

// gone turns "no row" into the answer for a caller who saw one.
func gone(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return engine.Errorf(engine.EngineNotFound, "the engine is gone already")
	}
	return err
}

// awaitDestroyed waits until a row that is being destroyed is gone. What a provision
// that removes itself tells its own caller is nothing to this one.
func (s *Scheduler) awaitDestroyed(ctx context.Context, row *engine.Row) (string, error) {
	if o := s.running(row.ProductID, row.UserID); o != nil && o.began.Kind == engine.OpDestroy {
		if _, err := o.wait(ctx); err != nil {
			return "", err
		}
		return row.EngineID, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit(engine.OpDestroy))
	defer cancel()
	for {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case errors.Is(err, registry.ErrNotFound) || err == nil && now.EngineID != row.EngineID:
			return row.EngineID, nil
		case err != nil && ctx.Err() == nil:
			return "", err
		case err == nil && now.Op != nil && now.Op.Owner == s.replica.ID:
			// A provision that was removing itself may have been cancelled for a destroy.
			if err := s.resume(ctx, now); err != nil && ctx.Err() == nil {
				return "", err
			}
		}
		if err == nil {
			if err := impatient(ctx, now); err != nil {
				return "", err
			}
		}
		if !pause.For(ctx, pollEvery) {
			return "", engine.BusyWith(engine.OpDestroy)
		}
	}
}
