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

// ProvisionOptions are the options of a provision.
type ProvisionOptions struct {
	// Image is the engine_version; empty: the product's or the service's default.
	Image string
	// from is the brain that the engine gets; nil: an empty one. fromAsked is the snapshot
	// that the caller named.
	from      *engine.Restoring
	fromAsked string
	// IdempotencyKey makes repeated calls return the same result; empty: none.
	IdempotencyKey string
}

// Provision creates an engine for the caller's user and waits until it is usable.
//
// After ENGINE_ALREADY_EXISTS, POLICY_DENIED, QUOTA_EXCEEDED, PORT_EXHAUSTION and
// CAPACITY_EXHAUSTED no engine was created. After ENGINE_BOOT_FAILED and BOOT_TIMEOUT the
// engine is failed and has its brain, so that Start can retry. After BACKEND_UNAVAILABLE the
// provision is being undone, and the same call may be made again. If the Idempotency-Key was
// used before, the result is that of the first call, or IDEMPOTENCY_KEY_REUSED or
// ENGINE_DESTROYED.
func (s *Scheduler) Provision(ctx context.Context, caller *Caller, o ProvisionOptions) (*engine.Row, string, error) {
	for range maxClaims {
		made, ref, err := s.replay(ctx, caller, o)
		if err == nil && made == nil {
			made, err = s.provision(ctx, caller, o, ref)
		}
		if errors.Is(err, registry.ErrKeyUsed) {
			continue // the same call is in progress, and both get its result
		}
		if err != nil {
			return nil, "", err
		}
		_, key, err := s.keyOf(ctx, caller, made)
		if err != nil && AsError(err).Code == engine.RotationUnconfirmed {
			err = engine.BusyWith(engine.OpRotateKey)
		}
		return made, key, err
	}
	return nil, "", engine.BusyWith(engine.OpProvision)
}

func (s *Scheduler) provision(ctx context.Context, caller *Caller, opts ProvisionOptions, ref *engine.IdempotencyRef) (*engine.Row, error) {
	image, err := s.allowedImage(caller.Product, opts.Image)
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
	var o *operation.Operation
	defer func() { s.leaveAfter(o, leave) }()
	var timings operation.Timings
	at := time.Now()
	s.foresee(image)
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	timings.Since(operation.TimingAsking, at)
	op := s.ops.NewOperation(ctx, engine.OpProvision, audit.ActionProvision, "")
	var details map[string]any
	if from := opts.from; from != nil {
		op.Action, op.Restoring, op.Deadline = audit.ActionFork, from, time.Now().UTC().Add(operation.BrainTimeout)
		details = map[string]any{"from_engine_id": from.EngineID, "snapshot_id": from.SnapshotID}
	}
	row := &engine.Row{
		ProductID: caller.Product.ProductID, ProductSlug: caller.Product.Slug, UserID: caller.UserID,
		State: engine.Provisioning, Desired: engine.Running,
		Image: image, Resources: s.resources(caller.Product.Policy), NodePool: caller.Product.Policy.NodePool,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Idempotency: ref, Op: op,
	}
	at = time.Now()
	if op.AuditID, err = s.begin(ctx, row, op.Action, caller.Product.Slug, details); err != nil {
		return nil, err
	}
	timings.Since(operation.TimingBegin, at)
	operation.Hit(op.Kind, operation.AtAudited)
	o, err = s.claimAndLaunch(ctx, caller, row, &timings)
	if err != nil {
		err = s.claimError(ctx, caller, err)
		if !errors.Is(err, operation.ErrUnanswered) { // otherwise the goroutine that watches the row completes it
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	made, err := o.Wait(ctx)
	if err == nil && made.Unlabelled { // a warm engine that did not get another identity
		s.warm.handedOut(made)
	}
	return made, err
}

// existing returns the error of a provision if the user has a row.
func existing(e *engine.Row) error {
	if e != nil && e.State == engine.Destroying {
		return engine.BusyWith(engine.OpDestroy)
	}
	return engine.Errorf(engine.EngineAlreadyExists, "this user already has an engine")
}

// claimAndLaunch writes the row of a provision, with a warm engine or a new one, and
// launches its operation. operation.ErrUnanswered: see there.
func (s *Scheduler) claimAndLaunch(ctx context.Context, caller *Caller, row *engine.Row, timings *operation.Timings) (*operation.Operation, error) {
	launched, _ := s.ops.Reserve(row.Op.ID)
	defer launched()
	if row.Op.Restoring == nil { // a warm engine has a brain already
		warm, claimed, err := s.warm.claim(ctx, caller, row, timings)
		if claimed {
			return s.ops.Launch(warm, *timings...), nil
		}
		if err != nil {
			return nil, err
		}
	}
	at := time.Now()
	if err := s.claim(ctx, caller, row); err != nil {
		return nil, err
	}
	timings.Since(operation.TimingClaim, at)
	operation.Hit(row.Op.Kind, operation.AtClaimed)
	return s.ops.Launch(row, *timings...), nil
}

// claim finds a place for a row and creates the row there. If another call takes the place
// meanwhile, the next one is tried.
func (s *Scheduler) claim(ctx context.Context, caller *Caller, row *engine.Row) error {
	for try := 0; ; try++ {
		p, err := s.choose(ctx, row.NodePool, row.Resources, 1, nil)
		if err != nil {
			// The quota and the user's own engine are checked before capacity.
			if qerr := s.quotaAllows(ctx, caller.Product); qerr != nil {
				return qerr
			}
			return err
		}
		p.applyTo(row)
		err = s.store.Claim(ctx, caller.Product, row, p.pooled)
		if err == nil {
			s.pool.Claimed(p.pooled)
		} else {
			s.pool.Release(p.pooled)
		}
		if errors.Is(err, registry.ErrMoved) && try < maxClaims {
			if err := s.guard.Again(ctx); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, registry.ErrConflict) || try == maxClaims {
			return s.ops.Unanswered(row, err)
		}
		// Another replica has claimed the pooled volume, or the product has changed.
		if err := caller.refresh(ctx, s); err != nil {
			return err
		}
	}
}

// maxClaims limits how often a provision loses a race before its caller must retry.
const maxClaims = 20

// quotaAllows returns QUOTA_EXCEEDED if the product is full.
func (s *Scheduler) quotaAllows(ctx context.Context, p *engine.Product) error {
	limit := p.Policy.MaxEngines
	if limit == nil {
		return nil
	}
	count, err := s.store.QuotaCount(ctx, p.ProductID)
	if err == nil && count >= *limit {
		return quotaExceeded(*limit)
	}
	return err
}

// claimError returns the error for a caller whose claim failed.
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

func quotaExceeded(limit int) *engine.Error {
	e := engine.Errorf(engine.QuotaExceeded, "the product has all %d engines that its policy allows", limit)
	e.RetryAfter = retryCapacity
	return e
}
