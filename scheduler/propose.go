package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// proposal is an operation that is to run on an engine.
type proposal struct {
	kind          engine.OpKind
	action, actor string // of its audit row
	details       map[string]any
	envVersion    int      // of a restart: the version of the provider keys that it is for
	backends      []string // the dependencies that it needs
	canary        bool
	record        *engine.IdempotencyRef // of its Idempotency-Key; nil: none
	pendingEntry  *pendingEntry          // its audit row, which further attempts may use; nil: none yet
	// prepare refuses states in which the operation makes no sense, and sets the fields of
	// the row while the operation is in progress. It may set Taking and Restoring in an
	// operation of the row.
	prepare func(*engine.Row) error
}

// propose writes an operation into a row that has none, and launches it. After the write,
// the row belongs to the operation. registry.ErrConflict: the row has changed since it was
// read.
func (s *Scheduler) propose(ctx context.Context, row *engine.Row, p proposal) (_ *operation.Operation, err error) {
	d := p.pendingEntry
	if d == nil {
		d = &pendingEntry{}
		defer func() { s.drop(ctx, d, err) }()
	}
	row = row.Clone()
	op := s.ops.NewOperation(ctx, p.kind, p.action, row.State)
	op.Canary, op.EnvVersion = p.canary, p.envVersion
	row.Idempotency = p.record
	if err := p.prepare(row); err != nil {
		return nil, err
	}
	if with := row.Op; with != nil { // what prepare has added to the operation
		op.Taking, op.Restoring = with.Taking, with.Restoring
		row.Op = nil
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

// write writes an operation into a row that was prepared for it, with the audit row of
// earlier attempts or a new one, and launches it. asking is the time that the availability
// probes took. The errors are those of Scheduler.begin and registry.Store.Update; after an
// error that leaves open whether the row was written, this replica watches the row.
func (s *Scheduler) write(ctx context.Context, row *engine.Row, op *engine.Operation, d *pendingEntry, actor string, details map[string]any, asking time.Duration) (*operation.Operation, error) {
	var timings operation.Timings
	timings.Took(operation.TimingAsking, asking)
	at := time.Now()
	if d.id == 0 {
		id, err := s.begin(ctx, row, op.Action, actor, details)
		if err != nil {
			return nil, err
		}
		*d = pendingEntry{id: id, began: op.BeganAt}
	}
	op.AuditID = d.id
	operation.Hit(op.Kind, operation.AtAudited)
	timings.Since(operation.TimingBegin, at)
	launched, _ := s.ops.Reserve(op.ID)
	defer launched()
	row.Op, at = op, time.Now()
	if err := s.store.Update(ctx, row); err != nil {
		if err = s.ops.Unanswered(row, err); errors.Is(err, operation.ErrUnanswered) {
			*d = pendingEntry{} // the goroutine that watches the row completes it
		}
		return nil, err
	}
	*d = pendingEntry{}
	timings.Since(operation.TimingClaim, at)
	operation.Hit(op.Kind, operation.AtClaimed)
	return s.ops.Launch(row, timings...), nil
}

// mayBegin returns an error unless a change can be begun: this replica is up and its
// dependencies respond.
func (s *Scheduler) mayBegin(ctx context.Context, backends ...string) error {
	if err := s.ops.Open(); err != nil {
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

// present returns an error unless the dependencies of a change respond: the named ones and
// the audit log, without which nothing is changed.
func (s *Scheduler) present(ctx context.Context, backends ...string) error {
	return s.checks.need(ctx, append(slices.Clone(backends), "audit")...)
}
