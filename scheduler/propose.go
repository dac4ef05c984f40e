package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// present says whether the dependencies of a change answer: the named ones and the
// audit log, without which nothing is changed.
func (s *Scheduler) present(ctx context.Context, backends ...string) error {
	return s.checks.need(ctx, append(slices.Clone(backends), "audit")...)
}

// mayBegin says whether a change can be begun: this replica is up and what it depends on
// answers.
func (s *Scheduler) mayBegin(ctx context.Context, backends ...string) error {
	if err := s.open(); err != nil {
		return err
	}
	if err := s.present(ctx, backends...); err != nil {
		return err
	}
	if err := s.Ready(); err != nil {
		return err
	}
	return s.guard.Await(ctx)
}

// change writes an operation into the caller's row, prepared by prepare, and
// waits for it. An operation under way is ENGINE_BUSY, unless it is the same and
// leads to the state that joins: then its caller is this one's too. prepare
// refuses states in which the operation makes no sense.
func (s *Scheduler) change(ctx context.Context, caller *Caller, kind engine.OpKind, action string, joins engine.State, backends []string, prepare func(*engine.Row) error) (_ *engine.Row, err error) {
	var d pendingEntry
	defer func() { s.drop(ctx, &d, err) }()
	var o *operation
	var leave func() // of a start's place among its product's boots
	for range maxClaims {
		done, record, err := s.recall(ctx, caller, kind)
		if done != nil {
			s.drop(ctx, &d, engine.BusyWith(kind)) // the row of the other one tells it
			return s.again(ctx, caller, done, joins)
		}
		if err != nil {
			return nil, err
		}
		row, err := caller.engine()
		if err != nil {
			return nil, err
		}
		if (kind == engine.OpStop || kind == engine.OpStart) && unconfirmed(row) {
			desired := engine.Running
			if kind == engine.OpStop {
				desired = engine.Stopped
			}
			if err := s.giveUpRotation(ctx, row, desired); err != nil {
				return nil, err
			}
			if err := caller.refresh(ctx, s); err != nil {
				return nil, err
			}
			continue
		}
		if row.Op != nil {
			err := engine.BusyWith(row.Op.Kind)
			if row.Op.Kind != kind || joins == "" {
				return nil, err
			}
			s.drop(ctx, &d, err) // the row of the other one tells it
			return s.join(ctx, row, joins)
		}
		p := proposal{kind: kind, action: action, actor: caller.Product.Slug, backends: backends, record: record, pendingEntry: &d, prepare: prepare}
		if kind == engine.OpStart && leave == nil {
			if err := prepare(row.Clone()); err != nil { // it need not wait for that
				return nil, err
			}
			if leave, err = s.bootLimiter.Enter(ctx, row.ProductID, func() error { return s.present(ctx, backends...) }); err != nil {
				return nil, waitedInVain(err)
			}
			defer func() { s.leaveAfter(o, leave) }()
		}
		if o, err = s.propose(ctx, row, p); err == nil {
			return o.wait(ctx)
		}
		if !errors.Is(err, registry.ErrConflict) && !errors.Is(err, registry.ErrKeyUsed) {
			return nil, err
		}
		if err := caller.refresh(ctx, s); err != nil {
			return nil, err
		}
	}
	return nil, engine.BusyWith(kind)
}

// proposal is an operation that somebody wants to run on an engine.
type proposal struct {
	kind          engine.OpKind
	action, actor string // of its audit row
	details       map[string]any
	envVersion    int      // a restart's: of the provider keys that it is for
	backends      []string // the dependencies that it needs
	canary        bool
	record        *engine.IdempotencyRef // of its Idempotency-Key; nil: it has none
	pendingEntry  *pendingEntry          // its audit row, which other tries may use after it; nil: it has none yet
	// prepare refuses states in which the operation makes no sense, and sets
	// what the row says while it is under way.
	prepare func(*engine.Row) error
}

// propose writes an operation into a row that has none, and launches it. Once it is
// written, the row is the operation's.
// registry.ErrConflict: somebody else changed the row since it was read.
func (s *Scheduler) propose(ctx context.Context, row *engine.Row, p proposal) (_ *operation, err error) {
	d := p.pendingEntry
	if d == nil {
		d = &pendingEntry{}
		defer func() { s.drop(ctx, d, err) }()
	}
	row = row.Clone()
	op := s.newOp(ctx, p.kind, p.action, row.State)
	op.Canary, op.EnvVersion = p.canary, p.envVersion
	row.Idempotency = p.record
	if err := p.prepare(row); err != nil {
		return nil, err
	}
	asked := time.Now()
	if err := s.mayBegin(ctx, p.backends...); err != nil {
		return nil, err
	}
	if err := s.ownedBy(ctx, row); err != nil {
		return nil, err
	}
	op.Step = firstStep(row, op)
	return s.write(ctx, row, op, d, p.actor, p.details, time.Since(asked))
}

// write writes an operation into a row that was prepared for it, under the audit row of
// the tries before it or a new one, and launches it. asking is how long the dependencies
// were asked for. The errors are those of Scheduler.begin and registry.Store.Update; after
// one that leaves open whether the row was written, this replica looks after it.
func (s *Scheduler) write(ctx context.Context, row *engine.Row, op *engine.Operation, d *pendingEntry, actor string, details map[string]any, asking time.Duration) (*operation, error) {
	var timings timings
	timings.took(timingAsking, asking)
	at := time.Now()
	if d.id == 0 {
		id, err := s.begin(ctx, row, op.Action, actor, details)
		if err != nil {
			return nil, err
		}
		*d = pendingEntry{id: id, began: op.BeganAt}
	}
	op.AuditID = d.id
	hit(op.Kind, atAudited)
	timings.since(timingBegin, at)
	launched, _ := s.reserveLaunch(op.ID)
	defer launched()
	row.Op, at = op, time.Now()
	if err := s.store.Update(ctx, row); err != nil {
		if err = s.unanswered(row, err); errors.Is(err, errUnanswered) {
			*d = pendingEntry{} // the one who looks after the row completes it
		}
		return nil, err
	}
	*d = pendingEntry{}
	timings.since(timingClaim, at)
	hit(op.Kind, atClaimed)
	return s.launch(row, timings...), nil
}

// join waits for an operation under way, on this replica or another, that leads
// to a state.
func (s *Scheduler) join(ctx context.Context, row *engine.Row, to engine.State) (*engine.Row, error) {
	if o := s.running(row.ProductID, row.UserID); o != nil && o.opID == row.Op.ID {
		return o.wait(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, s.LongestOperation())
	defer cancel()
	for pause.For(ctx, pollEvery) {
		now, err := s.store.Engine(ctx, row.ProductID, row.UserID)
		switch {
		case err != nil:
			return nil, gone(err)
		case now.Op != nil && now.Op.ID == row.Op.ID:
			if err := impatient(ctx, now); err != nil {
				return nil, err
			}
			continue
		case now.Op == nil && now.State == to:
			return now, nil
		}
		break
	}
	return nil, engine.BusyWith(row.Op.Kind)
}
