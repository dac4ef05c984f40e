package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// Start starts a stopped, sleeping or failed engine, and waits until it is usable. If the
// same start is in progress, it joins that one.
//
// ENGINE_NOT_FOUND, ENGINE_ALREADY_RUNNING, ENGINE_BUSY. After PORT_EXHAUSTION and
// CAPACITY_EXHAUSTED the engine is as before; after ENGINE_BOOT_FAILED and BOOT_TIMEOUT it
// is failed.
func (s *Scheduler) Start(ctx context.Context, caller *Caller) (*engine.Row, error) {
	return s.start(ctx, caller, audit.ActionStart)
}

// start is Start with the given action for the audit log.
func (s *Scheduler) start(ctx context.Context, caller *Caller, action string) (*engine.Row, error) {
	return s.change(ctx, caller, engine.OpStart, action, engine.Running, []string{"nomad", "vault"}, func(row *engine.Row) error {
		switch row.State {
		case engine.Running:
			return engine.Errorf(engine.EngineRunning, "the engine is running already")
		case engine.Stopped, engine.Sleeping, engine.Failed:
			if unfinished(row) {
				return engine.Errorf(engine.EngineBootFailed, "the engine has no brain, because its import from the snapshot store has failed; an admin can repeat that (orch snapshot import)")
			}
			if row.Reason == engine.ReasonBrainMissing {
				return engine.Errorf(engine.EngineBootFailed, "the engine's brain is missing, because it was destroyed after the registry's backup was made; the engine can only be destroyed (DELETE)")
			}
			row.State, row.Desired, row.Restarts = engine.Provisioning, engine.Running, nil
			return nil
		}
		return engine.BusyWith(engine.OpDestroy)
	})
}

// Stop ends the process of a running, failed or sleeping engine, and waits until it has
// ended. If the same stop is in progress, it joins that one.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. STOP_UNCONFIRMED: the engine's node
// does not respond; the stop is carried out when it is back.
func (s *Scheduler) Stop(ctx context.Context, caller *Caller) (*engine.Row, error) {
	return s.change(ctx, caller, engine.OpStop, audit.ActionStop, engine.Stopped, []string{"nomad"}, func(row *engine.Row) error {
		switch row.State {
		case engine.Stopped:
			return engine.Errorf(engine.EngineNotRunning, "the engine is stopped already")
		case engine.Running, engine.Sleeping, engine.Failed:
			row.Desired = engine.Stopped
			return nil
		}
		return engine.BusyWith(engine.OpDestroy)
	})
}

// RotateKey gives a running engine a new key. It returns the key after the engine has
// proved that it refuses the old key and accepts the new one.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. ROTATION_UNCONFIRMED: the engine did
// not prove it in time; the rotation continues in the background.
func (s *Scheduler) RotateKey(ctx context.Context, caller *Caller) (string, error) {
	row, err := s.change(ctx, caller, engine.OpRotateKey, audit.ActionRotateKey, "", []string{"nomad", "vault"}, func(row *engine.Row) error {
		if row.State != engine.Running {
			return engine.Errorf(engine.EngineNotRunning, "the engine is %s; only a running engine can rotate its key", row.State)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	_, key, err := s.keyOf(ctx, caller, row)
	return key, err
}

// change writes an operation, prepared by prepare, into the caller's row and waits for it.
// An operation in progress is ENGINE_BUSY, unless it is the same and leads to the state
// joins: then this caller waits for it too. prepare refuses states in which the operation
// makes no sense.
func (s *Scheduler) change(ctx context.Context, caller *Caller, kind engine.OpKind, action string, joins engine.State, backends []string, prepare func(*engine.Row) error) (_ *engine.Row, err error) {
	var d pendingEntry
	defer func() { s.drop(ctx, &d, err) }()
	var o *operation.Operation
	var leave func() // ends a start's place among its product's boots
	for range maxClaims {
		done, record, err := s.recall(ctx, caller, kind)
		if done != nil {
			caller.repeated = done
			s.drop(ctx, &d, engine.BusyWith(kind)) // the row of the other operation records it
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
		if yields(row) && (kind != engine.OpSnapshot || row.Op.Kind == engine.OpDrill) {
			if err := s.yield(ctx, row); err != nil {
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
			if r := row.Op.Restoring; kind == engine.OpRestore && (r == nil || source(r) != caller.restores) {
				return nil, err // it is restored from another snapshot
			}
			s.drop(ctx, &d, err) // the row of the other operation records it
			return s.join(ctx, row, joins)
		}
		p := proposal{kind: kind, action: action, actor: caller.Product.Slug, backends: backends, record: record, pendingEntry: &d, prepare: prepare}
		if kind == engine.OpStart && leave == nil {
			if err := prepare(row.Clone()); err != nil { // such a call need not wait
				return nil, err
			}
			if leave, err = s.bootLimiter.Enter(ctx, row.ProductID, func() error { return s.present(ctx, backends...) }); err != nil {
				return nil, waitedInVain(err)
			}
			defer func() { s.leaveAfter(o, leave) }()
		}
		if o, err = s.propose(ctx, row, p); err == nil {
			return o.Wait(ctx)
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
