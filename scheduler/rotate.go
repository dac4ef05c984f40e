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

// writeNewKey writes the next version of the engine's key. A crash before the
// row names it leaves a version that nobody was told; retireOldKey destroys it
// with the others.
func (o *operation) writeNewKey(ctx context.Context) error {
	for ctx.Err() == nil {
		newest, err := o.s.vault.NewestVersion(ctx, o.row.EngineID)
		if err != nil {
			return err
		}
		if err := o.fence(ctx); err != nil {
			return err
		}
		if err := o.isSomebodyElses(ctx, newest); err != nil {
			return err
		}
		k := o.newKey()
		err = o.s.vault.PutEngineKey(ctx, o.row.EngineID, k, newest)
		if errors.Is(err, secrets.ErrConflict) {
			continue // an answer was lost, or the operation
		}
		if err != nil {
			return err
		}
		o.row.Op.KeyVersion, o.row.Op.KeyID = k.Version, k.ID
		return nil
	}
	return ctx.Err()
}

// isSomebodyElses returns ENGINE_QUARANTINED when the newest secret names another
// owner than the row: then no key is written over it.
func (o *operation) isSomebodyElses(ctx context.Context, newest int) error {
	if newest == 0 {
		return nil
	}
	k, err := o.s.vault.EngineKey(ctx, o.row.EngineID, newest, "")
	if errors.Is(err, secrets.ErrNotFound) {
		return nil
	}
	if err == nil && !o.s.agree(k, o.row) {
		err = o.s.contradiction(ctx, o.row, k.Owner)
	}
	return err
}

// leave takes an operation back that changed nothing which an engine or a caller
// could see.
func (*operation) leave(context.Context) error { return nil }

// proveRotation waits until the engine refuses the old key and accepts the new
// one: /health is open, and the process before may still hold the port.
func (o *operation) proveRotation(ctx context.Context) error {
	if o.row.Op.GiveUp {
		o.rotateWithoutProcess(engine.ReasonKeyUnconfirmed)
		return nil
	}
	var last []cluster.Alloc
	err := o.whileOwned(ctx, func(ctx context.Context) (err error) {
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
		if o.answeredAlready() {
			err = nil
		}
	default:
		ended = false
	}
	if ended && err == nil {
		err = o.prove(ctx, last) // it may serve on with the old key
	}
	if ended && err == nil {
		o.rotateWithoutProcess(reason)
	}
	return o.noteSilence(ctx, err)
}

// unwritten is what a caller hears when Nomad ends the engine's process because it could
// not write the hash of the new key where the process would read it; nil: it could.
func unwritten(allocs []cluster.Alloc) error {
	for _, a := range allocs {
		if a.Cause == cluster.CauseTemplate {
			return engine.Errorf(engine.RotationUnconfirmed, "the engine's process is ended by its node, which could not write the hash of the new key into NOMAD_SECRETS_DIR (/secrets in a container): %s. That file system is of 1 MB, and what the engine writes there fills it. Its next process has the new key", a.Failure)
		}
	}
	return nil
}

// errEnded: Nomad knows that no process of the engine is left.
var errEnded = errors.New("the engine's process ended")

// rotateWithoutProcess ends the proof when no process that knows the old key is to go
// on; the next one reads the new hash.
func (o *operation) rotateWithoutProcess(reason string) {
	o.row.KeyVersion, o.row.KeyID = o.row.Op.KeyVersion, o.row.Op.KeyID
	if o.row.State == engine.Running || reason != engine.ReasonKeyUnconfirmed {
		o.row.State, o.row.Reason = engine.Failed, reason
	}
}

// rotationProven asks the engine again and again. After the caller was told that the
// rotation is not confirmed it goes on, less often. errEnded, errVanished: no process is
// there to be asked; the allocations are what Nomad knows of it.
func (o *operation) rotationProven(ctx context.Context) ([]cluster.Alloc, error) {
	keys, err := o.rotationKeys(ctx)
	if err != nil {
		return nil, err
	}
	until := o.row.Op.Deadline
	if soonest := time.Now().Add(killGrace); o.answeredAlready() && until.Before(soonest) {
		until = soonest
	}
	before, missed, looked := o.s.starts.Seen(ctx, o.row.JobID()), false, time.Now()
	heard, at := "", time.Time{} // what it answered last, and when
	for {
		said, asked := keys.Ask(ctx, o.s.probe, o.row.URL)
		if asked == nil {
			heard, at = said, time.Now()
		}
		switch {
		case said == "" && asked == nil:
			o.row.KeyVersion, o.row.KeyID = o.row.Op.KeyVersion, o.row.Op.KeyID
			o.row.LastHealthAt = time.Now().UTC()
			return nil, nil
		case asked != nil && !missed:
			missed = true // it is being restarted
			o.s.starts.Await(ctx, o.row.JobID(), before)
			continue
		case asked != nil:
			if said = heard; time.Since(at) > askAgain { // else it is slow for a moment
				said = "it does not answer"
			}
			o.followAlloc()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		silent, told := o.s.nodeSilent(o.row.NodeID), o.answeredAlready()
		if own, known := o.s.cluster.Newest(o.row.JobID()); known && !told {
			if err := unwritten([]cluster.Alloc{own}); err != nil {
				return nil, err // the process may serve on with the old key for its grace
			}
		}
		if silent && (!told || o.row.State == engine.Running) {
			return nil, &engine.Error{Code: engine.RotationUnconfirmed, Message: "the engine's node is silent; the rotation goes on when it returns", Err: errNodeSilent}
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
				return nil, engine.Errorf(engine.RotationUnconfirmed, "the engine has not confirmed its new key: %s; the rotation goes on in the background, and a stop or start gives the engine its new key", said)
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

func (o *operation) rotationKeys(ctx context.Context) (*boot.Rotation, error) {
	path, err := o.s.proofPath(ctx, o.row)
	if err != nil {
		return nil, err
	}
	// Vault may have lost the old key: then the rotation is a re-key, and any other
	// key than the new one has to be refused.
	k := &boot.Rotation{Path: path, Old: secrets.NewEngineKey()}
	old, err := o.s.secret(ctx, o.row)
	if err == nil {
		k.Old = old.Key
	} else if !errors.Is(err, secrets.ErrNotFound) {
		return nil, err
	}
	next, err := o.s.vault.EngineKey(ctx, o.row.EngineID, o.row.Op.KeyVersion, o.row.Op.KeyID)
	if err != nil {
		return nil, err
	}
	k.New = next.Key
	return k, nil
}

// followAlloc takes the address of the engine's newest process over: Nomad gives
// an allocation that was not known to run when its node fell silent another one
// when the node returns.
func (o *operation) followAlloc() {
	alloc, known := o.s.cluster.Newest(o.row.JobID())
	if known && !alloc.Terminal() && alloc.Addr != "" && alloc.ID != o.row.AllocID {
		o.row.AllocID, o.row.URL = alloc.ID, "http://"+alloc.Addr
	}
}

// proofEvery is how often the engine is asked for its key during a rotation.
const proofEvery = 5 * time.Millisecond

// processGone says whether Nomad knows that no process of the engine is left, or does
// not know the process of the row.
func (o *operation) processGone(ctx context.Context) (allocs []cluster.Alloc, gone, vanished bool) {
	w := o.s.cluster.Watch(o.row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, false, false
	}
	_ = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		own := o.row.AllocID == ""
		gone = len(state.Allocs) > 0
		for _, a := range state.Allocs {
			own = own || a.ID == o.row.AllocID
			gone = gone && a.Terminal() && !o.s.nodeSilent(a.NodeID)
		}
		vanished = !own || o.row.Vanished != nil
		return true, nil
	})
	return allocs, gone, vanished
}

// retireOldKey destroys the versions before the new one.
func (o *operation) retireOldKey(ctx context.Context) error {
	err := o.s.vault.DestroyVersionsBefore(ctx, o.row.EngineID, o.row.KeyVersion)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil
	}
	return err
}
