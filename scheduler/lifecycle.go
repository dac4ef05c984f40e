package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
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
func (s *Scheduler) Provision(ctx context.Context, caller *Caller, o ProvisionOptions) (*registry.Engine, string, error) {
	for range maxClaims {
		engine, ref, err := s.replay(ctx, caller, o)
		if err == nil && engine == nil {
			engine, err = s.provision(ctx, caller, o.Image, ref)
		}
		if errors.Is(err, registry.ErrKeyUsed) {
			continue // the same call is under way: its answer is this one's too
		}
		if err != nil {
			return nil, "", err
		}
		key, err := s.Key(ctx, engine)
		return engine, key, err
	}
	return nil, "", busy(registry.OpProvision)
}

func (s *Scheduler) provision(ctx context.Context, caller *Caller, image string, ref *registry.RecordRef) (*registry.Engine, error) {
	image, err := s.allowedImage(caller.Product, image)
	if err != nil {
		return nil, err
	}
	if caller.Engine != nil {
		return nil, existing(caller.Engine)
	}
	leave, err := s.gates.Enter(ctx, caller.Product.ProductID, func() error { return s.present(ctx, "nomad", "vault") })
	if err != nil {
		return nil, waitedInVain(err)
	}
	var o *operation
	defer func() { s.leaveAfter(o, leave) }()
	var spent spent
	at := time.Now()
	s.foresee(image)
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	spent.since(spentAsking, at)
	op := s.newOp(ctx, registry.OpProvision, audit.ActionProvision, "")
	row := &registry.Engine{
		ProductID: caller.Product.ProductID, ProductSlug: caller.Product.Slug, UserID: caller.UserID,
		State: registry.Provisioning, Desired: registry.Running,
		Image: image, Resources: s.resources(caller.Product.Policy), NodePool: caller.Product.Policy.NodePool,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Idempotency: ref, Op: op,
	}
	at = time.Now()
	if op.AuditID, err = s.begin(ctx, row, op.Action, caller.Product.Slug, nil); err != nil {
		return nil, err
	}
	spent.since(spentBegin, at)
	hit(op.Kind, atAudited)
	o, err = s.claimAndLaunch(ctx, caller, row, &spent)
	if err != nil {
		err = s.claimError(ctx, caller, err)
		if !errors.Is(err, errUnanswered) { // else the one who looks after the row completes it
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	engine, err := o.wait(ctx)
	if err == nil && engine.Unlabelled { // a warm engine, and it has not become another one
		s.warm.handedOut(engine)
	}
	return engine, err
}

// claimAndLaunch writes the row of a provision, a warm engine's or a new one, and
// launches what it carries. errUnanswered: see there.
func (s *Scheduler) claimAndLaunch(ctx context.Context, caller *Caller, row *registry.Engine, spent *spent) (*operation, error) {
	launched, _ := s.reserveLaunch(row.Op.ID)
	defer launched()
	warm, claimed, err := s.warm.claim(ctx, caller, row, spent)
	if claimed {
		return s.launch(warm, *spent...), nil
	}
	if err != nil {
		return nil, err
	}
	at := time.Now()
	if err := s.claim(ctx, caller, row); err != nil {
		return nil, err
	}
	spent.since(spentClaim, at)
	hit(row.Op.Kind, atClaimed)
	return s.launch(row, *spent...), nil
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
func existing(e *registry.Engine) error {
	if e != nil && e.State == registry.Destroying {
		return busy(registry.OpDestroy)
	}
	return fail(EngineAlreadyExists, "this user has an engine already")
}

// Start runs a stopped, sleeping or failed engine and waits until it is usable.
// A call that finds the same start under way joins it.
//
// ENGINE_NOT_FOUND, ENGINE_ALREADY_RUNNING, ENGINE_BUSY; PORT_EXHAUSTION and
// CAPACITY_EXHAUSTED leave the engine as it was; ENGINE_BOOT_FAILED and
// BOOT_TIMEOUT leave it failed.
func (s *Scheduler) Start(ctx context.Context, caller *Caller) (*registry.Engine, error) {
	return s.start(ctx, caller, audit.ActionStart)
}

// start is Start under the name that the audit log gives it.
func (s *Scheduler) start(ctx context.Context, caller *Caller, action string) (*registry.Engine, error) {
	return s.change(ctx, caller, registry.OpStart, action, registry.Running, []string{"nomad", "vault"}, func(row *registry.Engine) error {
		switch row.State {
		case registry.Running:
			return fail(EngineRunning, "the engine is running already")
		case registry.Stopped, registry.Sleeping, registry.Failed:
			if row.Reason == engine.ReasonBrainMissing {
				return fail(EngineBootFailed, "the engine's brain is missing: it was destroyed after the registry's backup was made; only DELETE is left")
			}
			row.State, row.Desired, row.Restarts = registry.Provisioning, registry.Running, nil
			return nil
		}
		return busy(registry.OpDestroy)
	})
}

// Stop ends the process of a running, failed or sleeping engine and waits until
// it is gone. A call that finds the same stop under way joins it.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. STOP_UNCONFIRMED: the
// engine's node is silent; the stop is carried out when it returns.
func (s *Scheduler) Stop(ctx context.Context, caller *Caller) (*registry.Engine, error) {
	return s.change(ctx, caller, registry.OpStop, audit.ActionStop, registry.Stopped, []string{"nomad"}, func(row *registry.Engine) error {
		switch row.State {
		case registry.Stopped:
			return fail(EngineNotRunning, "the engine is stopped already")
		case registry.Running, registry.Sleeping, registry.Failed:
			row.Desired = registry.Stopped
			return nil
		}
		return busy(registry.OpDestroy)
	})
}

// RotateKey gives a running engine a new key and returns it once the engine has
// shown that it refuses the old one and accepts the new one.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY. ROTATION_UNCONFIRMED: the
// engine has not shown it in time; the rotation goes on in the background.
func (s *Scheduler) RotateKey(ctx context.Context, caller *Caller) (string, error) {
	engine, err := s.change(ctx, caller, registry.OpRotateKey, audit.ActionRotateKey, "", []string{"nomad", "vault"}, func(row *registry.Engine) error {
		if row.State != registry.Running {
			return fail(EngineNotRunning, "the engine is %s; only a running engine can rotate its key", row.State)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return s.Key(ctx, engine)
}

// Key is the engine's key as callers get it. ENGINE_QUARANTINED: the row and the
// secret name different owners, and nobody is told it.
func (s *Scheduler) Key(ctx context.Context, e *registry.Engine) (string, error) {
	if e.KeyVersion == 0 {
		return "", nil // it is being provisioned and has none yet
	}
	k, err := s.secret(ctx, e)
	if errors.Is(err, secrets.ErrNotFound) && e.State == registry.Destroying {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return k.Key, nil
}

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
func (s *Scheduler) change(ctx context.Context, caller *Caller, kind registry.OpKind, action string, joins registry.State, backends []string, prepare func(*registry.Engine) error) (_ *registry.Engine, err error) {
	var d draft
	defer func() { s.drop(ctx, &d, err) }()
	var o *operation
	var leave func() // of a start's place among its product's boots
	for range maxClaims {
		done, record, err := s.recall(ctx, caller, kind)
		if done != nil {
			s.drop(ctx, &d, busy(kind)) // the row of the other one tells it
			return s.again(ctx, caller, done, joins)
		}
		if err != nil {
			return nil, err
		}
		row, err := caller.engine()
		if err != nil {
			return nil, err
		}
		if (kind == registry.OpStop || kind == registry.OpStart) && unconfirmed(row) {
			desired := registry.Running
			if kind == registry.OpStop {
				desired = registry.Stopped
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
			err := busy(row.Op.Kind)
			if row.Op.Kind != kind || joins == "" {
				return nil, err
			}
			s.drop(ctx, &d, err) // the row of the other one tells it
			return s.join(ctx, row, joins)
		}
		p := proposal{kind: kind, action: action, actor: caller.Product.Slug, backends: backends, record: record, draft: &d, prepare: prepare}
		if kind == registry.OpStart && leave == nil {
			if err := prepare(row.Clone()); err != nil { // it need not wait for that
				return nil, err
			}
			if leave, err = s.gates.Enter(ctx, row.ProductID, func() error { return s.present(ctx, backends...) }); err != nil {
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
	return nil, busy(kind)
}

// proposal is an operation that somebody wants to run on an engine.
type proposal struct {
	kind          registry.OpKind
	action, actor string // of its audit row
	details       map[string]any
	envVersion    int      // a restart's: of the provider keys that it is for
	backends      []string // the dependencies that it needs
	canary        bool
	record        *registry.RecordRef // of its Idempotency-Key; nil: it has none
	draft         *draft              // its audit row, which other tries may use after it; nil: it has none yet
	// prepare refuses states in which the operation makes no sense, and sets
	// what the row says while it is under way.
	prepare func(*registry.Engine) error
}

// propose writes an operation into a row that has none, and launches it. Once it is
// written, the row is the operation's.
// registry.ErrConflict: somebody else changed the row since it was read.
func (s *Scheduler) propose(ctx context.Context, row *registry.Engine, p proposal) (_ *operation, err error) {
	d := p.draft
	if d == nil {
		d = &draft{}
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
func (s *Scheduler) write(ctx context.Context, row *registry.Engine, op *registry.Op, d *draft, actor string, details map[string]any, asking time.Duration) (*operation, error) {
	var spent spent
	spent.took(spentAsking, asking)
	at := time.Now()
	if d.id == 0 {
		id, err := s.begin(ctx, row, op.Action, actor, details)
		if err != nil {
			return nil, err
		}
		*d = draft{id: id, began: op.BeganAt}
	}
	op.AuditID = d.id
	hit(op.Kind, atAudited)
	spent.since(spentBegin, at)
	launched, _ := s.reserveLaunch(op.ID)
	defer launched()
	row.Op, at = op, time.Now()
	if err := s.store.Update(ctx, row); err != nil {
		if err = s.unanswered(row, err); errors.Is(err, errUnanswered) {
			*d = draft{} // the one who looks after the row completes it
		}
		return nil, err
	}
	*d = draft{}
	spent.since(spentClaim, at)
	hit(op.Kind, atClaimed)
	return s.launch(row, spent...), nil
}

// join waits for an operation under way, on this replica or another, that leads
// to a state.
func (s *Scheduler) join(ctx context.Context, row *registry.Engine, to registry.State) (*registry.Engine, error) {
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
	return nil, busy(row.Op.Kind)
}
