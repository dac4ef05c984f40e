package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/scheduler/operation"
)

const (
	sigStop = "SIGSTOP"
	sigCont = "SIGCONT"
	// actsWithin is the maximum age of the proof that this replica owns an operation, when
	// it sends a signal: signals have no other protection.
	actsWithin = time.Second
	// thawTimeout is how long a resumed process may take to respond, while its memory is
	// paged in again; after that the engine is started with a new process.
	thawTimeout = 5 * time.Second
)

// freezable returns the data for the row about the process of a running engine that is to
// be frozen; nil: it cannot be frozen. Only docker sends a signal to an engine's own first
// process, and only an engine that the service asks shows that it does not respond.
func (s *Scheduler) freezable(row *engine.Row) *engine.Frozen {
	if s.opts.Job.Driver != jobs.Docker || s.detector.By == boot.ByConsul {
		return nil
	}
	alloc, known := s.cluster.Newest(row.JobID())
	f := &engine.Frozen{AllocID: row.AllocID, URL: row.URL, Started: alloc.Started}
	if !known || !boot.SameProcess(f, row, &alloc) {
		return nil
	}
	return f
}

// freeze stops the engine's process, with its memory, and thus finishes the operation. If
// that fails for any reason, the plan puts the engine to sleep.
func (o *work) freeze(ctx context.Context) error {
	err := o.tryFreeze(ctx)
	if o.paused && errors.Is(err, operation.ErrSuperseded) {
		o.takeBack(ctx)
	}
	return err
}

func (o *work) tryFreeze(ctx context.Context) error {
	began := time.Now()
	var unreached *boot.Unreached
	probe := o.s.probe.Of(o.Row.JobID())
	if err := probe.Health(ctx, o.Row.Frozen.URL); errors.As(err, &unreached) {
		return o.insteadOf("it cannot be paused, because nothing would show that it is, so it is stopped instead", err)
	}
	within := boot.StillAnswers + 3*min(time.Since(began), boot.SlowAnswer)
	if err := o.fenceNow(ctx); err != nil {
		return err
	}
	o.paused = true
	// This is not interrupted by a destroy, whose SIGCONT must not overtake this signal.
	refused := o.s.cluster.Signal(context.WithoutCancel(ctx), o.Row.Frozen.AllocID, sigStop)
	if refused == nil && probe.KeepsAnswering(ctx, o.Row.Frozen.URL, within) {
		refused = errors.New("it responds although its first process is stopped")
	}
	if err := o.Fence(ctx); err != nil {
		return err
	}
	if refused != nil {
		o.paused = false
		return o.insteadOf("it cannot be paused, so it is stopped instead", refused)
	}
	return nil
}

// takeBack resumes a process that was stopped although another operation owned the engine
// by then, unless that operation wants it stopped.
func (o *work) takeBack(ctx context.Context) {
	now, err := o.s.store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
	if err == nil && now.Frozen != nil && (now.Op == nil || now.Op.Step == stepFreeze) {
		return
	}
	o.s.goOn(ctx, o.Row)
}

// insteadOf continues with the operation's plan.
func (o *work) insteadOf(what string, why error) error {
	o.Log.Info(what, "why", why)
	o.Row.Op.Step = plans.First(o.Row.Op.Kind)
	return operation.ErrDetour
}

// fenceNow is fence for actions without check-and-set: it refuses a proof that became old
// because this process was paused.
func (o *work) fenceNow(ctx context.Context) error {
	for {
		began := time.Now()
		if err := o.Fence(ctx); err != nil {
			return err
		}
		if time.Since(began) < actsWithin {
			return nil
		}
		if !pause.For(ctx, pollEvery) {
			return ctx.Err()
		}
	}
}

// Reasons why an engine is started with a new process although it has a frozen one.
var (
	errThawed  = errors.New("its process is not the one that was frozen")
	errOldKeys = errors.New("the provider keys were rolled out since")
	errResized = errors.New("its policy gives it other resources now")
)

// thaw resumes the engine's process and waits until it is usable, which finishes the
// operation. If that fails for any reason, the plan starts the engine.
func (o *work) thaw(ctx context.Context) error {
	err := o.missedKeys(ctx)
	if err == nil {
		err = o.outgrown(ctx)
	}
	if err == nil {
		if ferr := o.fenceNow(ctx); ferr != nil {
			return ferr
		}
		err = o.WhileOwned(ctx, o.goesOn)
	}
	switch {
	case errors.Is(err, operation.ErrSuperseded) || errors.Is(err, operation.ErrReread) || ctx.Err() != nil:
		return err
	case err != nil:
		return o.insteadOf("it does not resume, so it is started with a new process", err)
	}
	o.Row.AllocID, o.Row.URL, o.Row.LastHealthAt = o.Row.Frozen.AllocID, o.Row.Frozen.URL, time.Now().UTC()
	o.paused = true
	return nil
}

// missedKeys returns errOldKeys if running engines were restarted for provider keys that
// the frozen process does not have.
func (o *work) missedKeys(ctx context.Context) error {
	r, err := o.s.store.Rollout(ctx)
	if err == nil && o.Row.EnvVersion < r.TargetVersion && o.Row.RestartedFor < r.TargetVersion {
		err = errOldKeys
	}
	return err
}

// outgrown returns errResized if the next start gives the engine other resources than the
// frozen process has.
func (o *work) outgrown(ctx context.Context) error {
	now, err := o.s.resourcesNow(ctx, o.Row)
	if err == nil && now != o.Row.Resources {
		err = errResized
	}
	return err
}

// goesOn sends SIGCONT and concurrently probes the engine: an early probe gets a response
// as soon as the process resumes.
func (o *work) goesOn(ctx context.Context) error {
	f := o.Row.Frozen
	secret, err := o.s.secret(ctx, o.Row)
	if err != nil {
		return err
	}
	path, err := o.s.proofPath(ctx, o.Row)
	if err != nil {
		return err
	}
	if o.s.detector.By == boot.ByConsul {
		return errors.New("the service does not connect to engines")
	}
	by := o.keyProof(path, secret.Key, f.AllocID)
	w := o.s.cluster.Watch(o.Row.JobID())
	defer w.Close()
	timed, stop := context.WithTimeout(ctx, thawTimeout)
	defer stop()
	ctx, cancel := context.WithCancelCause(timed)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel(nil)
	work.Go(func() {
		if err := o.s.cluster.Signal(ctx, f.AllocID, sigCont); err != nil {
			cancel(err)
		}
	})
	work.Go(func() {
		if o.s.detector.Boots.AwaitUsable(ctx, f.URL, by, nil) == nil {
			cancel(errHealthy)
		}
	})
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		for i := range state.Allocs {
			if a := &state.Allocs[i]; a.ID == f.AllocID && !boot.SameProcess(f, o.Row, a) {
				return false, errThawed
			}
		}
		return false, nil
	})
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errHealthy):
		return nil
	case cause != nil:
		return fmt.Errorf("it does not respond: %w", cause)
	}
	return err
}

// letEnd resumes a process that may be frozen, so that it can handle the SIGTERM that
// follows: a stopped process handles no signal. If this fails, the process is killed
// without a grace period, but it ends.
func (o *work) letEnd(ctx context.Context) error {
	if o.Row.Frozen == nil || o.s.nodeSilent(o.Row.NodeID) {
		return nil
	}
	if err := o.fenceNow(ctx); err != nil {
		return err
	}
	if err := o.s.cluster.Signal(ctx, o.Row.Frozen.AllocID, sigCont); err != nil {
		o.Log.Debug("cannot resume a paused process that is to end", "error", err)
	}
	return nil
}

// goOn resumes the process of a running engine, in case it was stopped by a late signal:
// one from a replica that was paused while another replica took over its operation.
func (s *Scheduler) goOn(ctx context.Context, row *engine.Row) {
	allocID := row.AllocID
	if row.Frozen != nil {
		allocID = row.Frozen.AllocID
	}
	if err := s.cluster.Signal(ctx, allocID, sigCont); err != nil {
		s.log.Debug("cannot resume an engine", "engine_id", row.EngineID, "error", err)
	}
}

// settleFrozen ends everything of a paused engine whose process has ended, was restarted or
// resumed, or is being ended by another operation: the engine then sleeps without a process.
func (s *Scheduler) settleFrozen(ctx context.Context, row *engine.Row) error {
	s.log.Warn("a paused engine's process is not the one that was frozen; the engine sleeps without a process", "engine_id", row.EngineID, "product_id", row.ProductID)
	return s.proposeAndWait(ctx, row, engine.OpSleep, audit.ActionSleep, "nomad")
}
