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
)

const (
	sigStop = "SIGSTOP"
	sigCont = "SIGCONT"
	// actsWithin is how old the proof may be that an operation is still this
	// replica's, when it sends a signal: nothing guards a signal but that.
	actsWithin = time.Second
	// thawTimeout is how long a process may take to answer when it goes on, its
	// memory paged in again; after that the engine is started anew.
	thawTimeout = 5 * time.Second
)

// freezable is what a running engine's row says of its process before that is
// frozen; nil where that cannot be done. Only docker sends a signal to an engine's
// own first process.
func (s *Scheduler) freezable(row *engine.Row) *engine.Frozen {
	if s.opts.Job.Driver != jobs.Docker {
		return nil
	}
	alloc, known := s.cluster.Newest(row.JobID())
	f := &engine.Frozen{AllocID: row.AllocID, URL: row.URL, Started: alloc.Started}
	if !known || !boot.SameProcess(f, row, &alloc) {
		return nil
	}
	return f
}

// freeze stops the engine's process where it is, memory and all, and so ends the
// operation. What does not freeze, for whatever reason, is put to sleep by the
// plan.
func (o *operation) freeze(ctx context.Context) error {
	err := o.tryFreeze(ctx)
	if o.paused && errors.Is(err, errSuperseded) {
		o.takeBack(ctx)
	}
	return err
}

func (o *operation) tryFreeze(ctx context.Context) error {
	began := time.Now()
	_ = o.s.probe.Health(ctx, o.row.Frozen.URL)
	within := boot.StillAnswers + 3*min(time.Since(began), boot.SlowAnswer)
	if err := o.fenceNow(ctx); err != nil {
		return err
	}
	o.paused = true
	// Not interrupted by a destroy: its SIGCONT must not overtake this one.
	refused := o.s.cluster.Signal(context.WithoutCancel(ctx), o.row.Frozen.AllocID, sigStop)
	if refused == nil && o.s.probe.KeepsAnswering(ctx, o.row.Frozen.URL, within) {
		refused = errors.New("it answers although its first process is stopped")
	}
	if err := o.fence(ctx); err != nil {
		return err
	}
	if refused != nil {
		o.paused = false
		return o.insteadOf("it cannot be paused and is stopped", refused)
	}
	return nil
}

// takeBack lets a process go on that was stopped when the operation was somebody
// else's by then, unless theirs is that it be stopped.
func (o *operation) takeBack(ctx context.Context) {
	now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
	if err == nil && now.Frozen != nil && (now.Op == nil || now.Op.Step == stepFreeze) {
		return
	}
	o.s.goOn(ctx, o.row)
}

// insteadOf goes on with the operation's plan.
func (o *operation) insteadOf(what string, why error) error {
	o.log.Info(what, "why", why)
	o.row.Op.Step = plans[o.row.Op.Kind][0].name
	return errDetour
}

// fenceNow is fence for acts that cannot be compared and set: it does not let one
// go ahead on a proof that a pause of this process has made old.
func (o *operation) fenceNow(ctx context.Context) error {
	for {
		began := time.Now()
		if err := o.fence(ctx); err != nil {
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

// Why an engine is started anew though its process is frozen.
var (
	errThawed  = errors.New("its process is not the one that was frozen")
	errOldKeys = errors.New("the provider keys were rolled out since")
	errResized = errors.New("its policy gives it other resources now")
)

// thaw lets the engine's process go on and waits until it is usable, which ends
// the operation. Where that does not succeed, whatever the reason, the engine is
// started by the plan.
func (o *operation) thaw(ctx context.Context) error {
	err := o.missedKeys(ctx)
	if err == nil {
		err = o.outgrown(ctx)
	}
	if err == nil {
		if ferr := o.fenceNow(ctx); ferr != nil {
			return ferr
		}
		err = o.whileOwned(ctx, o.goesOn)
	}
	switch {
	case errors.Is(err, errSuperseded) || errors.Is(err, errReread) || ctx.Err() != nil:
		return err
	case err != nil:
		return o.insteadOf("it does not go on and is started anew", err)
	}
	o.row.AllocID, o.row.URL, o.row.LastHealthAt = o.row.Frozen.AllocID, o.row.Frozen.URL, time.Now().UTC()
	o.paused = true
	return nil
}

// missedKeys returns errOldKeys where running engines were restarted for provider
// keys that the frozen process does not have.
func (o *operation) missedKeys(ctx context.Context) error {
	r, err := o.s.store.Rollout(ctx)
	if err == nil && o.row.EnvVersion < r.TargetVersion && o.row.RestartedFor < r.TargetVersion {
		err = errOldKeys
	}
	return err
}

// outgrown returns errResized where the next start gives the engine other resources than
// the frozen process has.
func (o *operation) outgrown(ctx context.Context) error {
	now, err := o.s.resourcesNow(ctx, o.row)
	if err == nil && now != o.row.Resources {
		err = errResized
	}
	return err
}

// goesOn sends SIGCONT and asks the engine, side by side: a question that comes
// first is answered as soon as the process goes on.
func (o *operation) goesOn(ctx context.Context) error {
	f := o.row.Frozen
	secret, err := o.s.secret(ctx, o.row)
	if err != nil {
		return err
	}
	path, err := o.s.proofPath(ctx, o.row)
	if err != nil {
		return err
	}
	by := o.keyProof(path, secret.Key, f.AllocID)
	w := o.s.cluster.Watch(o.row.JobID())
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
		if o.s.boots.AwaitUsable(ctx, f.URL, by, nil) == nil {
			cancel(errHealthy)
		}
	})
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		for i := range state.Allocs {
			if a := &state.Allocs[i]; a.ID == f.AllocID && !boot.SameProcess(f, o.row, a) {
				return false, errThawed
			}
		}
		return false, nil
	})
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errHealthy):
		return nil
	case cause != nil:
		return fmt.Errorf("it does not answer: %w", cause)
	}
	return err
}

// letEnd has a process that may be frozen go on, so that it ends by itself at the
// SIGTERM that follows: a stopped process handles none. What fails here costs the
// process its grace, not the engine its end.
func (o *operation) letEnd(ctx context.Context) error {
	if o.row.Frozen == nil || o.s.nodeSilent(o.row.NodeID) {
		return nil
	}
	if err := o.fenceNow(ctx); err != nil {
		return err
	}
	if err := o.s.cluster.Signal(ctx, o.row.Frozen.AllocID, sigCont); err != nil {
		o.log.Debug("a paused process that is to end was not let go on", "error", err)
	}
	return nil
}

// goOn lets the process of a running engine go on, should it have been stopped by
// a signal that came late: one from a replica that was paused while another took
// its operation over.
func (s *Scheduler) goOn(ctx context.Context, row *engine.Row) {
	if s.opts.Job.Driver != jobs.Docker {
		return
	}
	allocID := row.AllocID
	if row.Frozen != nil {
		allocID = row.Frozen.AllocID
	}
	if err := s.cluster.Signal(ctx, allocID, sigCont); err != nil {
		s.log.Debug("an engine was not told to go on", "engine_id", row.EngineID, "error", err)
	}
}

// settleFrozen ends what there is of a paused engine whose process is gone, was
// started anew or let go on, or is being ended by somebody else: it sleeps without one.
func (s *Scheduler) settleFrozen(ctx context.Context, row *engine.Row) error {
	s.log.Warn("a paused engine's process is not the one that was frozen; it sleeps on without", "engine_id", row.EngineID, "product_id", row.ProductID)
	return s.proposeAndWait(ctx, row, engine.OpSleep, audit.ActionSleep, "nomad")
}
