package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Provision makes the caller's user an engine and waits until it is usable.
//
// ENGINE_ALREADY_EXISTS, POLICY_DENIED, QUOTA_EXCEEDED, PORT_EXHAUSTION and
// CAPACITY_EXHAUSTED leave nothing behind; ENGINE_BOOT_FAILED and BOOT_TIMEOUT
// leave the engine failed, with its brain, for Start to try again. After
// BACKEND_UNAVAILABLE what was begun is being removed, and the same call may be
// made again. With an Idempotency-Key that was used: the first answer again, or
// IDEMPOTENCY_KEY_REUSED, ENGINE_DESTROYED.
func (s *Scheduler) Provision(ctx context.Context, caller *Caller, o ProvisionOptions) (*engine.Row, string, error) {
	for range maxClaims {
		made, ref, err := s.replay(ctx, caller, o)
		if err == nil && made == nil {
			made, err = s.provision(ctx, caller, o.Image, ref)
		}
		if errors.Is(err, registry.ErrKeyUsed) {
			continue // the same call is under way: its answer is this one's too
		}
		if err != nil {
			return nil, "", err
		}
		_, key, err := s.keyOf(ctx, caller, made)
		return made, key, err
	}
	return nil, "", engine.BusyWith(engine.OpProvision)
}

func (s *Scheduler) provision(ctx context.Context, caller *Caller, image string, ref *engine.IdempotencyRef) (*engine.Row, error) {
	image, err := s.allowedImage(caller.Product, image)
	if err != nil {
		return nil, err
	}
	if caller.Engine != nil {
		return nil, existing(caller.Engine)
	}
	leave, err := s.bootLimiter.Enter(ctx, caller.Product.ProductID, func() error { return s.present(ctx, "nomad", "vault") })
	if err != nil {
		return nil, waitedInVain(err)
	}
	var o *operation
	defer func() { s.leaveAfter(o, leave) }()
	var timings timings
	at := time.Now()
	s.foresee(image)
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	timings.since(timingAsking, at)
	op := s.newOp(ctx, engine.OpProvision, audit.ActionProvision, "")
	row := &engine.Row{
		ProductID: caller.Product.ProductID, ProductSlug: caller.Product.Slug, UserID: caller.UserID,
		State: engine.Provisioning, Desired: engine.Running,
		Image: image, Resources: s.resources(caller.Product.Policy), NodePool: caller.Product.Policy.NodePool,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Idempotency: ref, Op: op,
	}
	at = time.Now()
	if op.AuditID, err = s.begin(ctx, row, op.Action, caller.Product.Slug, nil); err != nil {
		return nil, err
	}
	timings.since(timingBegin, at)
	hit(op.Kind, atAudited)
	o, err = s.claimAndLaunch(ctx, caller, row, &timings)
	if err != nil {
		err = s.claimError(ctx, caller, err)
		if !errors.Is(err, errUnanswered) { // else the one who looks after the row completes it
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	made, err := o.wait(ctx)
	if err == nil && made.Unlabelled { // a warm engine, and it has not become another one
		s.warm.handedOut(made)
	}
	return made, err
}

// claimAndLaunch writes the row of a provision, a warm engine's or a new one, and
// launches what it carries. errUnanswered: see there.
func (s *Scheduler) claimAndLaunch(ctx context.Context, caller *Caller, row *engine.Row, timings *timings) (*operation, error) {
	launched, _ := s.reserveLaunch(row.Op.ID)
	defer launched()
	warm, claimed, err := s.warm.claim(ctx, caller, row, timings)
	if claimed {
		return s.launch(warm, *timings...), nil
	}
	if err != nil {
		return nil, err
	}
	at := time.Now()
	if err := s.claim(ctx, caller, row); err != nil {
		return nil, err
	}
	timings.since(timingClaim, at)
	hit(row.Op.Kind, atClaimed)
	return s.launch(row, *timings...), nil
}

// claimError is what a caller hears of a claim that failed.
func (s *Scheduler) claimError(ctx context.Context, caller *Caller, err error) error {
	switch {
	case errors.Is(err, registry.ErrExists):
		if err := caller.refresh(ctx, s); err != nil {
			return err
		}
		return existing(caller.Engine)
	case errors.Is(err, registry.ErrQuota):
		return quotaExceeded(*caller.Product.Policy.MaxEngines)
	}
	return err
}

// existing is what a provision hears when the user has a row.
func existing(e *engine.Row) error {
	if e != nil && e.State == engine.Destroying {
		return engine.BusyWith(engine.OpDestroy)
	}
	return engine.Errorf(engine.EngineAlreadyExists, "this user has an engine already")
}

// Start runs a stopped, sleeping or failed engine and waits until it is usable.
// A call that finds the same start under way joins it.
//
// ENGINE_NOT_FOUND, ENGINE_ALREADY_RUNNING, ENGINE_BUSY; PORT_EXHAUSTION and
// CAPACITY_EXHAUSTED leave the engine as it was; ENGINE_BOOT_FAILED and
// BOOT_TIMEOUT leave it failed.
func (s *Scheduler) Start(ctx context.Context, caller *Caller) (*engine.Row, error) {
	return s.start(ctx, caller, audit.ActionStart)
}

// start is Start under the name that the audit log gives it.
func (s *Scheduler) start(ctx context.Context, caller *Caller, action string) (*engine.Row, error) {
	return s.change(ctx, caller, engine.OpStart, action, engine.Running, []string{"nomad", "vault"}, func(row *engine.Row) error {
		switch row.State {
		case engine.Running:
			return engine.Errorf(engine.EngineRunning, "the engine is running already")
		case engine.Stopped, engine.Sleeping, engine.Failed:
			if row.Reason == engine.ReasonBrainMissing {
				return engine.Errorf(engine.EngineBootFailed, "the engine's brain is missing: it was destroyed after the registry's backup was made; only DELETE is left")
			}
			row.State, row.Desired, row.Restarts = engine.Provisioning, engine.Running, nil
			return nil
		}
		return engine.BusyWith(engine.OpDestroy)
	})
}

// Stop ends the process of a running, failed or sleeping engine and waits until
// it is gone. A call that finds the same stop under way joins it.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. STOP_UNCONFIRMED: the
// engine's node is silent; the stop is carried out when it returns.
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

// RotateKey gives a running engine a new key and returns it once the engine has
// shown that it refuses the old one and accepts the new one.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. ROTATION_UNCONFIRMED: the
// engine has not shown it in time; the rotation goes on in the background.
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

// Key is the engine's key as callers get it. ENGINE_QUARANTINED: the row and the
// secret name different owners, and nobody is told it.
func (s *Scheduler) Key(ctx context.Context, e *engine.Row) (string, error) {
	if e.KeyVersion == 0 {
		return "", nil // it is being provisioned and has none yet
	}
	k, err := s.secret(ctx, e)
	if errors.Is(err, secrets.ErrNotFound) && e.State == engine.Destroying {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return k.Key, nil
}
