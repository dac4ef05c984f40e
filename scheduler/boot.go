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
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

// Causes that end the wait for a boot.
var (
	errHealthy = errors.New("the engine said that it is healthy")
	// errDetour: the step named the next one itself.
	errDetour = errors.New("the operation takes a detour")
	// errPortTaken: something that is not the engine listens on the port that it was
	// given.
	errPortTaken = errors.New("the engine's port is taken")
	// errRelocated: the row has another identity, and says so already.
	errRelocated = errors.New("the engine is being placed on another node")
)

// bootFailure is an ENGINE_BOOT_FAILED with its reason for the row.
type bootFailure struct {
	err    *engine.Error
	reason string
}

func (e *bootFailure) Error() string { return e.err.Error() }
func (e *bootFailure) Unwrap() error { return e.err }

// reasonOf is the stable word that a row keeps of an error.
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

// lateGrace is how long an engine is given when its boot is taken over at or
// after its deadline: it may be healthy already.
const lateGrace = 2 * time.Second

// boot waits until the engine says that it is healthy and accepts its key. What the cluster knows
// ends the wait at once: no place for it, the image does not start, the process
// exited.
func (o *operation) boot(ctx context.Context) error {
	key := ""
	secret, err := o.s.secret(ctx, o.row)
	switch {
	case err == nil:
		key = secret.Key
	case o.row.Op.Kind == engine.OpRecover && (errors.Is(err, secrets.ErrUnavailable) || errors.Is(err, secrets.ErrNotFound)):
		// An engine that runs on is not failed for an outage of Vault, nor for a key
		// that Vault has lost.
	default:
		return err
	}
	path, err := o.s.proofPath(ctx, o.row)
	if err != nil {
		return err
	}
	deadline := o.row.Op.Deadline
	if soonest := time.Now().Add(lateGrace); deadline.Before(soonest) {
		deadline = soonest
	}
	whole := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timed, stop := context.WithDeadline(ctx, deadline)
	defer stop()

	w := o.s.cluster.Watch(o.row.JobID())
	defer w.Close()
	var probing sync.WaitGroup
	defer probing.Wait()
	defer stop()
	probing.Go(func() { o.watchRow(timed, cancel) })

	var kind *boot.Kind
	if !o.registeredAt.IsZero() { // else it was taken over, or runs already
		kind = &boot.Kind{Image: o.row.Image, First: o.row.Op.Kind == engine.OpProvision}
	}
	probed, pulling := "", ""
	look := func(state cluster.JobState) (bool, error) {
		alloc := o.ownAlloc(state)
		if alloc == nil {
			return false, o.placementError(state)
		}
		o.row.Crash, pulling = alloc.Crash, alloc.Pulling
		if alloc.Terminal() || alloc.Failure != "" && o.row.Op.Kind != engine.OpRecover { // Nomad restarts that one
			return false, o.bootFailed(timed, alloc)
		}
		if alloc.Addr != "" && probed != alloc.ID {
			url, by := "http://"+alloc.Addr, o.keyProof(path, key, alloc.ID)
			o.row.AllocID, o.row.URL, probed = alloc.ID, url, alloc.ID
			if o.row.Vanished != nil && o.row.Vanished.AllocID == alloc.ID {
				o.row.Vanished = nil
			}
			probing.Go(func() {
				o.s.starts.Await(timed, o.row.JobID(), 0)
				err, broken := o.s.boots.AwaitUsable(timed, url, by, kind), (*boot.Breach)(nil)
				switch {
				case err == nil:
					cancel(errHealthy)
				case errors.As(err, &broken):
					cancel(&bootFailure{err: brokenContract(broken), reason: engine.ReasonKeyProof})
				}
			})
		}
		return false, nil
	}
	for err = w.Until(timed, look); err != nil && o.makeRoom(timed, err); {
		err = w.Until(timed, look)
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errHealthy):
		o.row.LastHealthAt = time.Now().UTC()
		if kind != nil { // not taken over
			o.bootTook = time.Since(o.registeredAt)
			o.tellLimiter(kind)
		}
		return nil
	case errors.Is(cause, errSuperseded) && whole.Err() == nil:
		now, err := o.s.store.Engine(whole, o.row.ProductID, o.row.UserID)
		return o.lost(whole, now, err)
	case cause != nil:
		return cause
	}
	if errors.Is(err, context.DeadlineExceeded) && pulling != "" { // which says nothing about congestion
		return &bootFailure{
			err:    engine.Errorf(engine.BootTimeout, "the engine's node is still pulling its image, after its %s to boot: %s. The pull goes on, and a start succeeds when it is done", o.s.opts.BootTimeout, pulling),
			reason: engine.ReasonPull,
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if kind != nil {
			o.tellLimiter(kind)
		}
		return engine.Errorf(engine.BootTimeout, "the engine did not say that it is healthy within its %s to boot", o.s.opts.BootTimeout)
	}
	if code := AsError(err).Code; code == engine.PortExhaustion || code == engine.CapacityExhausted {
		if held, herr := o.s.heldBy(whole, o.row.VolumeID); herr == nil && held != "" {
			err = &engine.Error{Code: code, Message: "the engine's volume cannot be mounted: " + held, Err: err, RetryAfter: retryCapacity}
		}
		return o.mayRelocate(whole, err)
	}
	if errors.Is(err, errPortTaken) {
		return o.mayChangePort(err)
	}
	return err
}

// tellLimiter tells the boot limiter what the boot took up to now, where it ends.
func (o *operation) tellLimiter(kind *boot.Kind) {
	took, expected := time.Since(o.registeredAt), o.s.boots.Expected(*kind)
	o.s.bootLimiter.Booted(o.row.ProductID, o.registeredAt, boot.CongestionOf(took, o.s.opts.BootTimeout, expected))
}

// ownAlloc is the allocation of this operation's registration.
func (o *operation) ownAlloc(state cluster.JobState) *cluster.Alloc {
	var own *cluster.Alloc
	for i := range state.Allocs {
		a := &state.Allocs[i]
		if a.CreateIndex < o.row.Op.JobIndex {
			continue
		}
		if own == nil || a.CreateIndex > own.CreateIndex {
			own = a
		}
	}
	return own
}

// placementError is what Nomad said when it found no place, or nil.
func (o *operation) placementError(state cluster.JobState) error {
	slices.SortFunc(state.Evals, func(a, b cluster.Eval) int { return int(int64(a.CreateIndex) - int64(b.CreateIndex)) })
	for _, e := range slices.Backward(state.Evals) {
		if e.CreateIndex < o.row.Op.JobIndex || e.CreateIndex <= o.refusedAt || e.Failed == nil {
			continue
		}
		o.refusedAt = e.CreateIndex
		err := &engine.Error{Code: engine.CapacityExhausted, Message: "no node has room for the engine: " + e.Failed.Reason, RetryAfter: retryCapacity}
		if o.row.Op.Kind != engine.OpProvision {
			r := o.row.Resources
			err.Message = fmt.Sprintf("the node that has the engine's volume, and which alone can start it, has no room for its %d MB of memory and %d MHz: %s", r.MemoryMB, r.CPUMHz, e.Failed.Reason)
			if e.Failed.Volume {
				err.Message = "the engine's node does not offer the engine's volume now: the disk of its volumes may not be mounted; the log of its Nomad client says why (" + e.Failed.Reason + ")"
			}
		}
		if node, known := o.s.cluster.Node(o.row.NodeID); e.Failed.Driver && known && !o.s.drives(node) {
			err.Message, err.Err = "the engine's node cannot start it now: "+o.s.driverDown(), errDriverDown
		}
		if e.Failed.Ports {
			err.Code, err.Message = engine.PortExhaustion, "no node has a free port for the engine: "+e.Failed.Reason
		}
		return err
	}
	return nil
}

// bootFailed is what a boot whose process ended fails of. errPortTaken: a process could
// not have listened on the port, for something else does.
func (o *operation) bootFailed(ctx context.Context, a *cluster.Alloc) error {
	if a.Failure == "" {
		a.Failure = "its process ended"
	}
	failure := &bootFailure{err: engine.Errorf(engine.EngineBootFailed, "the engine could not boot: %s", a.Failure), reason: engine.ReasonCrashed}
	if o.s.opts.Job.Driver == jobs.RawExec && jobs.NotExecutable(a.Failure) {
		a.Cause, failure.err = cluster.CauseImage, engine.Errorf(engine.EngineBootFailed, "the engine could not boot: its node has no executable %q, or cannot run it", o.row.Image)
	}
	switch a.Cause {
	case cluster.CauseImage:
		failure.reason = engine.ReasonImage
		if o.s.opts.Job.Driver == jobs.Docker && jobs.AlwaysPulled(o.row.Image, o.s.Pinned(o.row)) {
			failure.err.Message += `. Its node pulls an image without a tag, or with the tag "latest", each time: one that is on the node alone needs another tag`
		}
		return failure
	case cluster.CauseMemory:
		failure.reason = engine.ReasonMemory
		return failure
	case cluster.CauseDriver:
		failure.reason = engine.ReasonDriver
	}
	if a.Addr != "" && listens(ctx, a.Addr) {
		failure.err = engine.Errorf(engine.EngineBootFailed, "the engine could not boot: %s; another process on its node listens on its port", a.Failure)
		return errors.Join(errPortTaken, failure)
	}
	return failure
}

// watchRow ends the boot when somebody else takes the row: a destroy on another
// replica waits for that.
func (o *operation) watchRow(ctx context.Context, cancel context.CancelCauseFunc) {
	productID, userID, index := o.row.ProductID, o.row.UserID, o.row.Index
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		row, err := o.s.store.Engine(ctx, productID, userID)
		if errors.Is(err, registry.ErrNotFound) || err == nil && row.Index != index {
			cancel(errSuperseded)
			return
		}
	}
}

// mayRelocate turns to relocate where a provision may be placed on another node,
// or returns why there is none.
func (o *operation) mayRelocate(ctx context.Context, cause error) error {
	if o.row.Op.Kind != engine.OpProvision {
		return cause
	}
	o.tried[o.row.NodeID], o.noPlace = true, cause
	place, err := o.s.choose(ctx, o.row.NodePool, o.row.Resources, 1, o.tried)
	if err != nil {
		return cause
	}
	o.s.pool.Release(place.pooled)
	if !place.fits {
		return cause
	}
	// The row says so before anything is removed: whoever finds it there knows
	// that this identity is given up.
	o.row.Op.Step = detours[engine.OpProvision][0].name
	return errDetour
}

// relocate gives a provision that its node could not place a new identity on
// the next node that has room. The old identity was told to nobody; what was
// made for it is removed.
func (o *operation) relocate(ctx context.Context) error {
	for _, undo := range []func(*operation, context.Context) error{
		(*operation).quiesce, (*operation).awaitGone, (*operation).purge, (*operation).deleteVolume, (*operation).deleteVariable, (*operation).deleteKey,
	} {
		if err := undo(o, ctx); err != nil {
			return errors.Join(o.noPlace, err)
		}
	}
	hitStep(o.row.Op.Kind, o.row.Op.Step, atDone)
	place, err := o.s.choose(ctx, o.row.NodePool, o.row.Resources, 1, o.tried)
	if err != nil {
		return errors.Join(o.noPlace, err)
	}
	return o.reidentify(ctx, place)
}
