package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

// writeNewKey writes the next version of the engine's key. If a crash happens before the
// row names it, nobody ever got this version, and retireOldKey destroys it with the others.
func (o *work) writeNewKey(ctx context.Context) error {
	for ctx.Err() == nil {
		newest, err := o.s.vault.NewestVersion(ctx, o.Row.EngineID)
		if err != nil {
			return err
		}
		if err := o.Fence(ctx); err != nil {
			return err
		}
		if err := o.isSomebodyElses(ctx, newest); err != nil {
			return err
		}
		k := o.newKey()
		err = o.s.vault.PutEngineKey(ctx, o.Row.EngineID, k, newest)
		if errors.Is(err, secrets.ErrConflict) {
			continue // a response was lost, or the operation
		}
		if err != nil {
			return err
		}
		o.Row.Op.KeyVersion, o.Row.Op.KeyID = k.Version, k.ID
		return nil
	}
	return ctx.Err()
}

// isSomebodyElses returns ENGINE_QUARANTINED if the newest secret names another owner than
// the row: then it is not overwritten.
func (o *work) isSomebodyElses(ctx context.Context, newest int) error {
	if newest == 0 {
		return nil
	}
	k, err := o.s.vault.EngineKey(ctx, o.Row.EngineID, newest, "")
	if errors.Is(err, secrets.ErrNotFound) {
		return nil
	}
	if err == nil && !o.s.agree(k, o.Row) {
		err = o.s.contradiction(ctx, o.Row, k.Owner)
	}
	return err
}

// leave undoes an operation that changed nothing visible to an engine or a caller.
func (*work) leave(context.Context) error { return nil }

// proveRotation waits until the engine refuses the old key and accepts the new one. /health
// proves nothing, because it is open, and the previous process may still have the port.
func (o *work) proveRotation(ctx context.Context) error {
	if o.Row.Op.GiveUp {
		o.rotateWithoutProcess(engine.ReasonKeyUnconfirmed)
		return nil
	}
	var last []cluster.Alloc
	err := o.WhileOwned(ctx, func(ctx context.Context) (err error) {
		last, err = o.rotationProven(ctx)
		return err
	})
	ended, reason := true, engine.ReasonCrashed
	switch {
	case errors.Is(err, errVanished):
		err = o.outlastVanished(ctx)
	case errors.Is(err, errEnded):
		if err = unwritten(last); err != nil {
			reason = engine.ReasonKeyUnconfirmed
		}
		if o.Told() {
			err = nil
		}
	default:
		ended = false
	}
	if ended && err == nil {
		err = o.prove(ctx, last) // it may still serve with the old key
	}
	if ended && err == nil {
		o.rotateWithoutProcess(reason)
	}
	return o.noteSilence(ctx, err)
}

// unwritten returns the error if Nomad ends the engine's process because it could not write
// the hash of the new key where the process would read it; nil: it could.
func unwritten(allocs []cluster.Alloc) error {
	for _, a := range allocs {
		if a.Cause == cluster.CauseTemplate {
			return engine.Errorf(engine.RotationUnconfirmed, "the node ended the engine's process, because it could not write the hash of the new key into NOMAD_SECRETS_DIR (/secrets in a container): %s. That file system has 1 MB, and what the engine writes there fills it. The engine's next process has the new key", a.Failure)
		}
	}
	return nil
}

// errEnded: Nomad knows that no process of the engine is left.
var errEnded = errors.New("the engine's process ended")

// rotateWithoutProcess ends the proof if no process that knows the old key continues; the
// next process reads the new hash.
func (o *work) rotateWithoutProcess(reason string) {
	o.Row.KeyVersion, o.Row.KeyID = o.Row.Op.KeyVersion, o.Row.Op.KeyID
	if o.Row.State == engine.Running || reason != engine.ReasonKeyUnconfirmed {
		o.Row.State, o.Row.Reason = engine.Failed, reason
	}
}

// rotationProven probes the engine repeatedly. After the caller got ROTATION_UNCONFIRMED, it
// continues at a longer interval. errEnded, errVanished: there is no
// process to probe; the allocations are what Nomad knows about it.
func (o *work) rotationProven(ctx context.Context) ([]cluster.Alloc, error) {
	keys, err := o.rotationKeys(ctx)
	if err != nil {
		return nil, err
	}
	until := o.Row.Op.Deadline
	if soonest := time.Now().Add(killGrace); o.Told() && until.Before(soonest) {
		until = soonest
	}
	before, missed, looked := o.s.starts.Seen(ctx, o.Row.JobID()), false, time.Now()
	heard, at := "", time.Time{} // the engine's last response, and its time
	proof := &rotationProof{o: o, keys: keys}
	for {
		said, asked := proof.ask(ctx)
		if asked == nil {
			heard, at = said, time.Now()
		}
		switch {
		case said == "" && asked == nil:
			o.Row.KeyVersion, o.Row.KeyID = o.Row.Op.KeyVersion, o.Row.Op.KeyID
			o.Row.LastHealthAt = time.Now().UTC()
			return nil, nil
		case asked != nil && !missed:
			missed = true // it is being restarted
			o.s.starts.Await(ctx, o.Row.JobID(), before)
			continue
		case asked != nil:
			if said = heard; time.Since(at) > askAgain { // otherwise it is only slow for a moment
				said = "it does not respond"
			}
			o.followAlloc()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		silent, told := o.s.nodeSilent(o.Row.NodeID), o.Told()
		if own, known := o.s.cluster.Newest(o.Row.JobID()); known && !told {
			if err := unwritten([]cluster.Alloc{own}); err != nil {
				return nil, err // the process may still serve with the old key during its grace period
			}
		}
		if silent && (!told || o.Row.State == engine.Running) {
			return nil, &engine.Error{Code: engine.RotationUnconfirmed, Message: "the engine's node does not respond; the rotation continues when the node is back", Err: errNodeSilent}
		}
		late := time.Now().After(until)
		if !silent && (late || asked != nil && time.Since(looked) > askAgain) {
			looked = time.Now()
			switch allocs, gone, vanished := o.processGone(ctx); {
			case vanished:
				return allocs, errVanished
			case gone:
				return allocs, errEnded
			case late && !told:
				return nil, engine.Errorf(engine.RotationUnconfirmed, "the engine has not confirmed its new key: %s; the rotation continues in the background, and a stop or start gives the engine its new key", said)
			}
			if late {
				until = looked.Add(killGrace)
			}
		}
		every := proofEvery
		if told {
			every = askAgain
		}
		if !pause.For(ctx, every) {
			return nil, ctx.Err()
		}
	}
}

func (o *work) rotationKeys(ctx context.Context) (*boot.Rotation, error) {
	path, err := o.s.proofPath(ctx, o.Row)
	if err != nil {
		return nil, err
	}
	// Vault may have lost the old key: then the rotation is a re-key, and every key other
	// than the new one must be refused.
	k := &boot.Rotation{JobID: o.Row.JobID(), Path: path, Old: secrets.NewEngineKey()}
	old, err := o.s.secret(ctx, o.Row)
	if err == nil {
		k.Old = old.Key
	} else if !errors.Is(err, secrets.ErrNotFound) {
		return nil, err
	}
	next, err := o.s.vault.EngineKey(ctx, o.Row.EngineID, o.Row.Op.KeyVersion, o.Row.Op.KeyID)
	if err != nil {
		return nil, err
	}
	k.New = next.Key
	return k, nil
}

// followAlloc updates the address to that of the engine's newest process: if an allocation
// was not known to run when its node became unreachable, Nomad replaces it when the node is
// back.
func (o *work) followAlloc() {
	alloc, known := o.s.cluster.Newest(o.Row.JobID())
	if known && !alloc.Terminal() && alloc.Addr != "" && alloc.ID != o.Row.AllocID {
		o.Row.AllocID, o.Row.URL = alloc.ID, o.Row.At(alloc.Addr)
	}
}

// proofEvery is the interval of probes with the key during a rotation.
const proofEvery = 5 * time.Millisecond

// processGone reports whether Nomad knows that no process of the engine is left, or does
// not know the process of the row.
func (o *work) processGone(ctx context.Context) (allocs []cluster.Alloc, gone, vanished bool) {
	w := o.s.cluster.Watch(o.Row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, false, false
	}
	_ = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		own := o.Row.AllocID == ""
		gone = len(state.Allocs) > 0
		for _, a := range state.Allocs {
			if o.Row.Left(a.NodeID) {
				continue
			}
			own = own || a.ID == o.Row.AllocID
			gone = gone && a.Terminal() && !o.s.nodeSilent(a.NodeID)
		}
		vanished = !own || o.Row.Vanished != nil
		return true, nil
	})
	return allocs, gone, vanished
}

// retireOldKey destroys the versions before the new one.
func (o *work) retireOldKey(ctx context.Context) error {
	err := o.s.vault.DestroyVersionsBefore(ctx, o.Row.EngineID, o.Row.KeyVersion)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil
	}
	return err
}
