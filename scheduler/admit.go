package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Denial is why an admit is not granted (SPEC section 2). It is an answer, not
// an error.
type Denial string

// The reasons of SPEC section 2.
const (
	DenialNotFound     Denial = "engine_not_found"
	DenialSleeping     Denial = "engine_sleeping"
	DenialStopped      Denial = "engine_stopped"
	DenialProvisioning Denial = "engine_provisioning"
	DenialUnhealthy    Denial = "engine_unhealthy"
	DenialDestroying   Denial = "engine_destroying"
)

// denialRate is how the audit log counts admits that the rate limit refused.
const denialRate Denial = "rate_limited"

// AdmitOptions are what an admit may do for a user whose engine does not run.
type AdmitOptions struct{ AutoProvision, AutoWake bool }

// Admission is the answer to an admit.
type Admission struct {
	// Engine and Key are set when the user is admitted, Denial when not.
	Engine *engine.Row
	Key    string
	Denial Denial
}

// Rate is what the rate limit said of an admit; nil when the product has none.
type Rate = registry.Verdict

// Admit says whether the user of a caller from AuthenticateAdmit may use its
// engine now, and where. On a running engine it writes nothing and reads nothing
// that AuthenticateAdmit has not read; but should the leader be asking whether
// the engine may be put to sleep, it writes that it may not. It may be called
// again at any time; calls that find a boot under way wait for it, when they may
// cause one themselves.
//
// BACKEND_UNAVAILABLE: this replica may have lost its session, and then nobody
// asks it before putting engines to sleep. RATE_LIMITED, QUOTA_EXCEEDED, and the errors of Provision and Start.
func (s *Scheduler) Admit(ctx context.Context, caller *Caller, opts AdmitOptions) (*Admission, *Rate, error) {
	rate, err := s.takeToken(ctx, caller)
	if err != nil {
		return nil, rate, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.ops.Longest())
	defer cancel()
	for range maxClaims {
		switch way, denial := decide(caller.Engine, opts); way {
		case admitted:
			row := caller.Engine
			if row.SleepPending != "" {
				if err := s.keepFromSleep(ctx, row); errors.Is(err, registry.ErrConflict) {
					break
				} else if err != nil {
					return nil, rate, err
				}
			}
			key, err := s.Key(ctx, row)
			if isRetired(err) {
				if err := caller.rekeyed(ctx, s, err); err != nil {
					return nil, rate, err
				}
				continue
			}
			if admission, done, err := s.grant(caller, row, key, err); done {
				return admission, rate, err
			}
		case denied:
			s.audit.Denied(caller.Product.ProductID, caller.UserID, string(denial))
			return &Admission{Denial: denial}, rate, nil
		case provisioned:
			row, key, err := s.Provision(ctx, caller, ProvisionOptions{})
			if err != nil && overtaken(err) {
				break
			}
			if admission, done, err := s.grant(caller, row, key, err); done {
				return admission, rate, err
			}
		case woken:
			row, err := s.start(ctx, caller, audit.ActionWake)
			if err != nil && overtaken(err) {
				break
			}
			key := ""
			if err == nil {
				key, err = s.Key(ctx, row)
			}
			if isRetired(err) { // its key has been rotated since
				break
			}
			if admission, done, err := s.grant(caller, row, key, err); done {
				return admission, rate, err
			}
		case rotating:
			row := caller.Engine
			key, err := s.awaitRotation(ctx, row)
			if err != nil || key != "" {
				if admission, done, err := s.grant(caller, row, key, err); done {
					return admission, rate, err
				}
			}
		case joined:
			if err := s.awaitOperation(ctx, caller.Engine); err != nil {
				return nil, rate, err
			}
		}
		if err := caller.refresh(ctx, s); err != nil {
			return nil, rate, err
		}
	}
	return nil, rate, engine.Errorf(engine.EngineBusy, "the engine changes faster than it can be admitted; try again in a moment")
}

// grant is the answer of an admit that leads to the engine of a row. It is not done when this
// replica has another session than the one that the row was read under: then the
// row has to be read again, for the engine may sleep by now.
func (s *Scheduler) grant(caller *Caller, row *engine.Row, key string, err error) (admission *Admission, done bool, _ error) {
	switch {
	case err != nil:
		return nil, true, err
	case caller.visit.Serve():
		return &Admission{Engine: row, Key: key}, true, nil
	case s.replica.Session() == "":
		return nil, true, registry.ErrNoSession
	}
	return nil, false, nil
}

// keepFromSleep takes the leader's mark off a row, so that the engine is not put
// to sleep. registry.ErrConflict: the row is another by now.
func (s *Scheduler) keepFromSleep(ctx context.Context, row *engine.Row) error {
	row.SleepPending = ""
	return s.store.Update(ctx, row)
}

// overtaken says whether another call was faster: the row says what now.
func overtaken(err error) bool {
	switch AsError(err).Code {
	case engine.EngineAlreadyExists, engine.EngineRunning, engine.EngineBusy:
		return true
	}
	return false
}

// takeToken takes one token of the product's rate limit.
func (s *Scheduler) takeToken(ctx context.Context, caller *Caller) (*Rate, error) {
	limit := caller.Product.Policy.RateLimitRPM
	if limit == nil {
		return nil, nil
	}
	rate, err := s.limiter.Allow(ctx, caller.Product.ProductID, *limit)
	if err != nil {
		return nil, err
	}
	if !rate.Allowed {
		s.audit.Denied(caller.Product.ProductID, caller.UserID, string(denialRate))
		return &rate, &engine.Error{Code: engine.RateLimited, Message: "the product's rate limit for admits is reached", RetryAfter: rate.RetryAfter}
	}
	return &rate, nil
}

// way is what an admit leads to.
type way int

const (
	denied way = iota
	admitted
	provisioned
	woken
	joined
	rotating
)

// decide is the one table of admission (SPEC section 2).
func decide(row *engine.Row, opts AdmitOptions) (way, Denial) {
	if row == nil {
		if opts.AutoProvision {
			return provisioned, ""
		}
		return denied, DenialNotFound
	}
	if row.State == engine.Destroying {
		return denied, DenialDestroying
	}
	if row.Op != nil {
		switch row.Op.Kind {
		case engine.OpRotateKey:
			if row.State == engine.Failed {
				return denied, DenialUnhealthy
			}
			return rotating, "" // the key of now may be gone in a moment
		case engine.OpRestart:
			return joined, "" // so may the process
		case engine.OpStop:
			return denied, DenialStopped
		case engine.OpSleep:
			if opts.AutoWake {
				return joined, "" // and woken when it sleeps
			}
			return denied, DenialSleeping
		}
		if opts.AutoProvision || opts.AutoWake {
			return joined, ""
		}
		return denied, DenialProvisioning
	}
	switch row.State {
	case engine.Running:
		return admitted, ""
	case engine.Sleeping:
		if opts.AutoWake {
			return woken, ""
		}
		return denied, DenialSleeping
	case engine.Stopped:
		return denied, DenialStopped
	case engine.Failed:
		return denied, DenialUnhealthy
	}
	return denied, DenialProvisioning
}
