package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/secrets"
)

// Causes that end the wait for a boot.
var (
	errHealthy = errors.New("the engine reported that it is healthy")
	// errPassing: only Consul reports that it is. Its checks run at an interval, so the time
	// of such a boot shows nothing about congestion.
	errPassing = errors.New("the engine's check in Consul passes")
	// errPortTaken: another process listens on the port that the engine was given.
	errPortTaken = errors.New("the engine's port is in use by another process")
)

// reasonOf returns the reason for the row in an error.
func reasonOf(err error) string {
	var boot *bootFailure
	switch {
	case errors.As(err, &boot):
		return boot.reason
	case AsError(err).Code == engine.BootTimeout:
		return engine.ReasonBootTimeout
	case errors.Is(err, errNodeSilent):
		return engine.ReasonNodeDown
	case errors.Is(err, errStateLost):
		return engine.ReasonVolumeUnknown
	}
	return ""
}

// lateGrace is how long an engine is given if its boot is taken over at or after its
// deadline, because it may be healthy already.
const lateGrace = 2 * time.Second

// boot waits until the engine reports that it is healthy and accepts its key. The wait ends
// early if Nomad reports a failure: no capacity, an image that does not start, a process
// that exited.
func (o *work) boot(ctx context.Context) error {
	if err := o.recoversNewest(ctx); err != nil {
		return err
	}
	key := ""
	secret, err := o.s.secret(ctx, o.Row)
	switch {
	case err == nil:
		key = secret.Key
	case o.Row.Op.Kind == engine.OpRecover && (errors.Is(err, secrets.ErrUnavailable) || errors.Is(err, secrets.ErrNotFound)):
		// An engine that still runs is not failed because of an outage of Vault, or because
		// Vault has lost its key.
	default:
		return err
	}
	path, err := o.s.proofPath(ctx, o.Row)
	if err != nil {
		return err
	}
	deadline := o.Row.Op.Deadline
	if soonest := time.Now().Add(lateGrace); deadline.Before(soonest) {
		deadline = soonest
	}
	whole := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timed, stop := context.WithDeadline(ctx, deadline)
	defer stop()

	w := o.s.cluster.Watch(o.Row.JobID())
	defer w.Close()
	var probing sync.WaitGroup
	defer probing.Wait()
	defer stop()
	probing.Go(func() { o.WatchRow(timed, cancel) })

	var kind *boot.Kind
	if !o.registeredAt.IsZero() { // otherwise it was taken over, or runs already
		kind = &boot.Kind{Image: o.Row.Image, First: o.Row.Op.Kind == engine.OpProvision}
	}
	probed, pulling, missing := "", "", ""
	look := func(state cluster.JobState) (bool, error) {
		alloc := o.ownAlloc(state)
		if alloc == nil {
			return false, o.placementError(state)
		}
		o.Row.Crash, pulling, missing = alloc.Crash, alloc.Pulling, alloc.Missing
		if alloc.Terminal() || alloc.Failure != "" && o.Row.Op.Kind != engine.OpRecover { // Nomad restarts the failed process during OpRecover
			return false, o.bootFailed(timed, alloc)
		}
		if alloc.Addr != "" && probed != alloc.ID {
			url, by := o.Row.At(alloc.Addr), o.keyProof(path, key, alloc.ID)
			o.Row.AllocID, o.Row.URL, probed = alloc.ID, url, alloc.ID
			if o.Row.Vanished != nil && o.Row.Vanished.AllocID == alloc.ID {
				o.Row.Vanished = nil
			}
			process := boot.Process{URL: url, JobID: o.Row.JobID(), AllocID: alloc.ID, Old: o.Row.Op.Kind == engine.OpRecover, Signalled: o.s.signals()}
			probing.Go(func() {
				by, err := o.s.detector.AwaitUsable(timed, process, by, kind)
				var broken *boot.Breach
				switch {
				case err == nil && by == boot.ByConsul:
					cancel(errPassing)
				case err == nil:
					cancel(errHealthy)
				case errors.As(err, &broken):
					cancel(brokenContract(broken))
				}
			})
		}
		return false, nil
	}
	for err = w.Until(timed, look); err != nil && o.makeRoom(timed, err); {
		err = w.Until(timed, look)
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errHealthy), errors.Is(cause, errPassing):
		o.Row.LastHealthAt = time.Now().UTC()
		if kind != nil { // not taken over
			o.bootTook = time.Since(o.registeredAt)
		}
		if errors.Is(cause, errPassing) {
			o.noteUnreached()
		} else if kind != nil {
			o.tellLimiter(kind)
		}
		return nil
	case errors.Is(cause, operation.ErrSuperseded) && whole.Err() == nil:
		now, err := o.s.store.Engine(whole, o.Row.ProductID, o.Row.UserID)
		return o.Lost(whole, now, err)
	case cause != nil:
		return cause
	}
	if errors.Is(err, context.DeadlineExceeded) && pulling != "" { // that shows nothing about congestion
		return &bootFailure{
			err:    engine.Errorf(engine.BootTimeout, "the engine's node is still pulling its image, after its %s to boot: %s. The pull continues, and a start succeeds after it", o.s.opts.BootTimeout, pulling),
			reason: engine.ReasonPull,
		}
	}
	if errors.Is(err, context.DeadlineExceeded) && missing != "" {
		return engine.Errorf(engine.BootTimeout, "the engine's process could not start within its %s to boot, because its node does not get what the job's templates need: %s. Check that Vault or Nomad gives it to the engine's login", o.s.opts.BootTimeout, missing)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if kind != nil {
			o.tellLimiter(kind)
		}
		return engine.Errorf(engine.BootTimeout, "the engine did not report that it is healthy within its %s to boot", o.s.opts.BootTimeout)
	}
	if code := AsError(err).Code; code == engine.PortExhaustion || code == engine.CapacityExhausted {
		if held, herr := o.s.heldBy(whole, o.Row.VolumeID); herr == nil && held != "" {
			err = &engine.Error{Code: code, Message: "the engine's volume cannot be mounted: " + held, Err: err, RetryAfter: retryCapacity}
		}
		return o.mayRelocate(whole, err)
	}
	if errors.Is(err, errPortTaken) {
		return o.mayChangePort(err)
	}
	return err
}

// tellLimiter reports the duration of the boot to the boot limiter, if the boot ends here.
func (o *work) tellLimiter(kind *boot.Kind) {
	took, expected := time.Since(o.registeredAt), o.s.detector.Expected(*kind)
	o.s.bootLimiter.Booted(o.Row.ProductID, o.registeredAt, boot.CongestionOf(took, o.s.opts.BootTimeout, expected))
}

// ownAlloc returns the allocation of this operation's registration.
func (o *work) ownAlloc(state cluster.JobState) *cluster.Alloc {
	var own *cluster.Alloc
	for i := range state.Allocs {
		a := &state.Allocs[i]
		if a.CreateIndex < o.Row.Op.JobIndex {
			continue
		}
		if own == nil || a.CreateIndex > own.CreateIndex {
			own = a
		}
	}
	return own
}

// placementError returns Nomad's reason that it found no node, as an error, or nil.
func (o *work) placementError(state cluster.JobState) error {
	slices.SortFunc(state.Evals, func(a, b cluster.Eval) int { return int(int64(a.CreateIndex) - int64(b.CreateIndex)) })
	for _, e := range slices.Backward(state.Evals) {
		if e.CreateIndex < o.Row.Op.JobIndex || e.CreateIndex <= o.refusedAt || e.Failed == nil {
			continue
		}
		o.refusedAt = e.CreateIndex
		err := &engine.Error{Code: engine.CapacityExhausted, Message: "no node has enough capacity for the engine: " + e.Failed.Reason, RetryAfter: retryCapacity}
		if o.Row.Op.Kind != engine.OpProvision {
			r := o.Row.Resources
			err.Message = fmt.Sprintf("only the node with the engine's volume can start it, and that node does not have %d MB of memory and %d MHz of CPU available: %s", r.MemoryMB, r.CPUMHz, e.Failed.Reason)
			if e.Failed.Volume {
				err.Message = "the engine's node does not offer the engine's volume: check that the disk of its volumes is mounted, and the log of its Nomad client (" + e.Failed.Reason + ")"
			}
		}
		switch node, known := o.s.cluster.Node(o.Row.NodeID); {
		case !known:
		case e.Failed.Driver && !o.s.drives(node):
			err.Message, err.Err = "the engine's node cannot start it now: "+o.s.driverDown(), errDriverDown
		case !isolates(node, o.Row.Resources.Isolation):
			err.Message, err.Err = "the engine's node cannot start it: "+noRuntime(o.Row.Resources.Isolation), errDriverDown
		}
		if e.Failed.Ports {
			err.Code, err.Message = engine.PortExhaustion, "no node has a free port for the engine: "+e.Failed.Reason
		}
		return err
	}
	return nil
}

// bootFailed returns the error of a boot whose process ended. errPortTaken: the process
// could not listen on its port, because another process does.
func (o *work) bootFailed(ctx context.Context, a *cluster.Alloc) error {
	if a.Failure == "" {
		a.Failure = "its process ended"
	}
	failure := &bootFailure{err: engine.Errorf(engine.EngineBootFailed, "the engine could not boot: %s", a.Failure), reason: engine.ReasonCrashed}
	if o.s.opts.Job.Driver == jobs.RawExec && jobs.NotExecutable(a.Failure) {
		a.Cause, failure.err = cluster.CauseImage, engine.Errorf(engine.EngineBootFailed, "the engine could not boot: its node has no executable %q, or cannot execute it", o.Row.Image)
	}
	switch a.Cause {
	case cluster.CauseImage:
		failure.reason = engine.ReasonImage
		if o.s.opts.Job.Driver == jobs.Docker && jobs.AlwaysPulled(o.Row.Image, o.s.Pinned(o.Row)) {
			failure.err.Message += `. Its node pulls an image without a tag, or with the tag "latest", each time: an image that exists only on the node needs another tag`
		}
		return failure
	case cluster.CauseMemory:
		failure.reason = engine.ReasonMemory
		return failure
	case cluster.CauseDriver:
		failure.reason = engine.ReasonDriver
	}
	if a.Addr != "" && o.s.detector.By != boot.ByConsul && listens(ctx, a.Addr) {
		failure.err = engine.Errorf(engine.EngineBootFailed, "the engine could not boot: %s; another process on its node listens on its port", a.Failure)
		return errors.Join(errPortTaken, failure)
	}
	return failure
}

// mayRelocate continues at the step relocate if a provision may be placed on another node;
// otherwise it returns why not.
func (o *work) mayRelocate(ctx context.Context, cause error) error {
	if o.Row.Op.Kind != engine.OpProvision {
		return cause
	}
	o.tried[o.Row.NodeID], o.noPlace = true, cause
	place, err := o.s.choose(ctx, o.Row.NodePool, o.Row.Resources, 1, o.tried)
	if err != nil {
		return cause
	}
	o.s.pool.Release(place.pooled)
	if !place.fits {
		return cause
	}
	// This is written to the row before anything is removed, so that every replica knows
	// that this identity is abandoned.
	o.Row.Op.Step = stepRelocate
	return operation.ErrDetour
}

// relocate gives a provision that its node could not place a new identity on the next node
// with capacity, and removes everything of the old one, which was never returned to a
// caller.
func (o *work) relocate(ctx context.Context) error {
	for _, undo := range []func(*work, context.Context) error{
		(*work).quiesce, (*work).awaitGone, (*work).purge, (*work).deleteVolume, (*work).deleteVariable, (*work).deleteKey,
	} {
		if err := undo(o, ctx); err != nil {
			return errors.Join(o.noPlace, err)
		}
	}
	operation.HitStep(o.Row.Op, operation.AtDone)
	place, err := o.s.choose(ctx, o.Row.NodePool, o.Row.Resources, 1, o.tried)
	if err != nil {
		return errors.Join(o.noPlace, err)
	}
	return o.reidentify(ctx, place)
}
