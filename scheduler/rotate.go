package scheduler

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
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
	err := o.whileOwned(ctx, o.rotationProven)
	if errors.Is(err, errVanished) {
		err = o.outlastVanished(ctx)
		if err == nil {
			o.rotateWithoutProcess()
		}
	}
	return o.noteSilence(ctx, err)
}

// rotateWithoutProcess ends the proof when no process is left that knows the old key;
// the next one reads the new hash.
func (o *operation) rotateWithoutProcess() {
	o.row.KeyVersion, o.row.KeyID = o.row.Op.KeyVersion, o.row.Op.KeyID
	o.row.State, o.row.Reason = registry.Failed, reasonCrashed
}

func (o *operation) rotationProven(ctx context.Context) error {
	// Vault may have lost the old key: then the rotation is a re-key, and any other
	// key than the new one has to be refused.
	oldKey := secrets.NewEngineKey()
	old, err := o.s.secret(ctx, o.row)
	if err == nil {
		oldKey = old.Key
	} else if !errors.Is(err, secrets.ErrNotFound) {
		return err
	}
	next, err := o.s.vault.EngineKey(ctx, o.row.EngineID, o.row.Op.KeyVersion, o.row.Op.KeyID)
	if err != nil {
		return err
	}
	newKey := next.Key
	until := o.row.Op.Deadline
	if later := time.Now().Add(killGrace); o.answeredAlready() && until.Before(later) {
		until = later
	}
	before, missed := o.startsSeen(ctx), false
	for {
		refused, asked := o.s.probe.status(ctx, o.row.URL, oldKey)
		if asked != nil && !missed {
			missed = true // it is being restarted
			o.awaitStarted(ctx, before)
			continue
		}
		if asked != nil {
			o.followAlloc()
		}
		if refused == http.StatusUnauthorized {
			accepted, err := o.s.probe.status(ctx, o.row.URL, newKey)
			if err == nil && accepted != http.StatusUnauthorized {
				o.row.KeyVersion, o.row.KeyID = o.row.Op.KeyVersion, o.row.Op.KeyID
				o.row.LastHealthAt = time.Now().UTC()
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if o.s.nodeSilent(o.row.NodeID) {
			return &Error{Code: RotationUnconfirmed, Message: "the engine's node is silent; the rotation goes on when it returns", Err: errNodeSilent}
		}
		if time.Now().After(until) {
			switch gone, vanished := o.processGone(ctx); {
			case vanished:
				return errVanished
			case gone:
				o.rotateWithoutProcess()
				return nil
			}
			return fail(RotationUnconfirmed, "the engine has not confirmed its new key yet; the rotation goes on in the background")
		}
		select {
		case <-ctx.Done():
		case <-time.After(proofEvery):
		}
	}
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
func (o *operation) processGone(ctx context.Context) (gone, vanished bool) {
	w := o.s.cluster.Watch(o.row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return false, false
	}
	_ = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		own := o.row.AllocID == ""
		gone = len(state.Allocs) > 0
		for _, a := range state.Allocs {
			own = own || a.ID == o.row.AllocID
			gone = gone && a.Terminal() && !o.s.nodeSilent(a.NodeID)
		}
		vanished = !own || o.row.Vanished != nil
		return true, nil
	})
	return gone, vanished
}

// retireOldKey destroys the versions before the new one.
func (o *operation) retireOldKey(ctx context.Context) error {
	err := o.s.vault.DestroyVersionsBefore(ctx, o.row.EngineID, o.row.KeyVersion)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil
	}
	return err
}
