package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// takeForFork takes the snapshot of another engine that this one gets, unless it exists. Its
// id is in the row, so that a new owner of the operation finds it.
func (o *work) takeForFork(ctx context.Context) error { return o.WhileOwned(ctx, o.takenForFork) }

func (o *work) takenForFork(ctx context.Context) error {
	r := o.Row.Op.Restoring
	for asked := false; ; {
		m, err := o.s.opts.Snapshots.Store.Manifest(ctx, source(r))
		if err == nil {
			r.Content, r.Recipient = &m.Content, m.Recipient
			return nil
		}
		if brain.KindOf(err) != brain.NotFound {
			return err
		}
		row, err := o.s.store.Engine(ctx, o.Row.ProductID, r.UserID)
		if errors.Is(err, registry.ErrNotFound) || err == nil && row.EngineID != r.EngineID {
			return engine.Errorf(engine.EngineNotFound, "the engine that was to be forked has been destroyed")
		}
		if err != nil {
			return err
		}
		switch op, last := row.Op, row.Last; {
		case yields(row):
			if err := o.s.yield(ctx, row); err != nil {
				return err
			}
			continue
		case op != nil && (op.Taking == nil || op.Taking.SnapshotID != r.SnapshotID):
			return engine.BusyWith(op.Kind)
		case op != nil: // by the owner before
		case asked && last != nil && last.Kind == engine.OpSnapshot && last.Code != "":
			return &engine.Error{Code: engine.Code(last.Code), Message: last.Message}
		case asked: // it was taken, and deleted since
			return errNoSnapshot
		default:
			asked = true
			if err := o.beginTaking(ctx, row); err != nil {
				return err
			}
			continue
		}
		if time.Now().After(o.Row.Op.Deadline) {
			return engine.Errorf(engine.SnapshotFailed, "the snapshot for the fork took too long")
		}
		if !pause.For(ctx, pollEvery) {
			return ctx.Err()
		}
	}
}

// beginTaking takes the snapshot of a fork.
func (o *work) beginTaking(ctx context.Context, row *engine.Row) error {
	t := &engine.Taking{SnapshotID: o.Row.Op.Restoring.SnapshotID, Trigger: engine.TriggerFork}
	taking, err := o.s.propose(ctx, row, proposal{
		kind: engine.OpSnapshot, action: audit.ActionSnapshot, actor: actorSystem, backends: []string{"nomad", "vault"},
		prepare: func(row *engine.Row) error { return o.s.prepareSnapshot(row, t) },
	})
	if errors.Is(err, registry.ErrConflict) {
		return engine.BusyWith(engine.OpSnapshot)
	}
	if err != nil {
		return err
	}
	_, err = taking.Wait(ctx)
	return err
}
