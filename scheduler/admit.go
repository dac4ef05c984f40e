package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Denial is why an admit is not granted. It is a result, not an error.
type Denial string

// The reasons of a denial.
const (
	DenialNotFound     Denial = "engine_not_found"
	DenialSleeping     Denial = "engine_sleeping"
	DenialStopped      Denial = "engine_stopped"
	DenialProvisioning Denial = "engine_provisioning"
	DenialUnhealthy    Denial = "engine_unhealthy"
	DenialDestroying   Denial = "engine_destroying"
)

// denialRate is the reason in the audit log of admits that the rate limit refused.
const denialRate Denial = "rate_limited"

// AdmitOptions are what an admit may do for a user whose engine does not run.
type AdmitOptions struct{ AutoProvision, AutoWake bool }

// Admission is the result of an admit.
type Admission struct {
	// Engine and Key are set if the user is admitted, otherwise Denial.
	Engine *engine.Row
	Key    string
	Denial Denial
}

// Rate is the state of the rate limit after an admit; nil if the product has none.
type Rate = registry.Verdict

// Admit reports whether the user of a caller from AuthenticateAdmit may use its engine now,
// and where the engine is. For a running engine it writes nothing, and reads nothing that
// AuthenticateAdmit has not read. The exception is an engine that the leader is about to
// put to sleep: Admit writes the row to prevent that. It may be called again at any time.
// If a boot is in progress, calls that may cause one wait for its end.
//
// BACKEND_UNAVAILABLE: this replica may have lost its session, and the leader does not
// consult a replica without a session before it puts engines to sleep. RATE_LIMITED,
// QUOTA_EXCEEDED, and the errors of Provision and Start.
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
				if key, err = s.Key(ctx, row); isRetired(err) { // it has been rotated since
					break
				}
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
	return nil, rate, engine.Errorf(engine.EngineBusy, "the engine changes faster than it can be admitted; retry in a moment")
}

// grant returns the result of an admit that leads to the engine of a row. done is false if
// this replica has another session than when the row was read: then the row must be read
// again, because the engine may sleep now.
func (s *Scheduler) grant(caller *Caller, row *engine.Row, key string, err error) (admission *Admission, done bool, _ error) {
	switch {
	case err != nil:
		return nil, true, err
	case caller.visit.Serve():
		return &Admission{Engine: row, Key: key}, true, nil
	case s.replica.Session() == "":
		return nil, true, s.replica.Absent()
	}
	return nil, false, nil
}

// keepFromSleep removes the leader's mark from a row, so that the engine is not put to
// sleep. registry.ErrConflict: the row has changed.
func (s *Scheduler) keepFromSleep(ctx context.Context, row *engine.Row) error {
	row.SleepPending = ""
	return s.store.Update(ctx, row)
}

// overtaken reports whether a concurrent call was faster, so that the row must be read
// again.
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
		return &rate, &engine.Error{Code: engine.RateLimited, Message: "the product has reached its rate limit for admits", RetryAfter: rate.RetryAfter}
	}
	return &rate, nil
}

// way is what an admit does with a row.
type way int

const (
	denied way = iota
	admitted
	provisioned
	woken
	joined
	rotating
)

// decide is the table of admission.
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
	if op := row.Op; op != nil && (op.Kind == engine.OpRestore || op.Kind == engine.OpMove) && row.State == engine.Running && !op.Restoring.Ended && op.Undo == "" {
		return admitted, "" // it runs on while the other volume is made
	}
	if row.Op != nil && (!row.Op.Kind.Beside() || row.State != engine.Running && (opts.AutoProvision || opts.AutoWake)) { // an engine runs on while a snapshot is taken
		switch row.Op.Kind {
		case engine.OpSnapshot, engine.OpDrill:
			if opts.AutoWake && row.State == engine.Sleeping {
				return woken, ""
			}
		case engine.OpRotateKey:
			if row.State == engine.Failed {
				return denied, DenialUnhealthy
			}
			return rotating, "" // the current key may be destroyed in a moment
		case engine.OpRestart:
			return joined, "" // so may the process
		case engine.OpStop:
			return denied, DenialStopped
		case engine.OpSleep:
			if opts.AutoWake {
				return joined, "" // wait, and wake it when it sleeps
			}
			return denied, DenialSleeping
		case engine.OpMove:
			if w, why := decideMove(row, opts); w != joined {
				return w, why
			}
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
