package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// Destroy removes an engine with its brain and key, in any state, and waits until nothing
// remains of it. It interrupts an operation in progress. If the engine is already being
// destroyed, it waits for that.
//
// ENGINE_NOT_FOUND. ENGINE_QUARANTINED: another row names the same engine; nothing was
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
			s.drop(ctx, &d, engine.BusyWith(engine.OpDestroy)) // the audit row of the other destroy records it
			return s.awaitDestroyed(ctx, row)
		}
		o, err := s.beginDestroy(ctx, caller, row, &d, record, asking)
		if err == nil {
			gone, err := o.Wait(ctx)
			if err != nil {
				return "", err
			}
			return gone.EngineID, nil
		}
		if errors.Is(err, registry.ErrKeyUsed) {
			s.drop(ctx, &d, engine.BusyWith(engine.OpDestroy))
			return s.Destroy(ctx, caller) // the same call is in progress, and its result is returned
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

// beginDestroy ends what this replica does with an engine, and writes a destroy over the
// operation in its row. registry.ErrConflict: the row has changed.
func (s *Scheduler) beginDestroy(ctx context.Context, caller *Caller, row *engine.Row, d *pendingEntry, record *engine.IdempotencyRef, asking time.Duration) (*operation.Operation, error) {
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
	op := s.ops.NewOperation(ctx, engine.OpDestroy, audit.ActionDestroy, row.State)
	op.Supersedes = other
	carryOver(row, cut, op)
	row.State, row.Desired = engine.Destroying, engine.Destroying
	if record != nil {
		if other := row.Idempotency; other != nil {
			record.Replaces = other.Key
		}
		row.Idempotency = record
	}
	o, err := s.write(ctx, row, op, d, caller.Product.Slug, nil, asking)
	if err == nil && cut != nil {
		// Its replica may have ended, or never have run it, so nobody else may complete its
		// audit row.
		s.complete(ctx, cut.AuditID, audit.Completion{Outcome: string(engine.EngineBusy), EngineID: row.EngineID, Duration: time.Since(cut.BeganAt)})
	}
	return o, err
}

// carryOver writes into a destroy what the operation that it interrupts has made outside the
// registry, and a process that it may have frozen.
func carryOver(row *engine.Row, cut, op *engine.Operation) {
	if cut == nil {
		return
	}
	op.Attempt, op.Taking, op.Restoring = cut.Attempt, cut.Taking, cut.Restoring
	if r := cut.Restoring; r != nil && r.Former != nil { // one of them is the brain
		row.Discard(*r.Former, time.Now().UTC())
		row.Discard(r.Target, time.Now().UTC())
	}
	if cut.Kind == engine.OpDrill {
		row.Discard(cut.Restoring.Target, time.Now().UTC())
	}
	if t := cut.Taking; t != nil && t.Freezing && row.Frozen == nil {
		row.Frozen = &engine.Frozen{AllocID: t.AllocID, URL: row.URL}
	}
}

// halt makes sure that this replica does not run the operation of a row, and does not start
// to before release is called. registry.ErrConflict: it did, and the row must be read
// again.
func (s *Scheduler) halt(ctx context.Context, row *engine.Row) (release func(), err error) {
	release, under := s.ops.Reserve(row.Op.ID)
	if under != nil { // it is being launched, or its write was refused
		select {
		case <-under:
			return nil, registry.ErrConflict
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	o := s.ops.Running(row.ProductID, row.UserID)
	if o == nil {
		return release, nil
	}
	release()
	var soon <-chan time.Time
	if o.Began.Kind == engine.OpDestroy { // it began after the row was read, and may take long
		soon = time.After(pollEvery)
	} else {
		o.Interrupt()
	}
	select {
	case <-o.Ended:
	case <-soon:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return nil, registry.ErrConflict
}
