package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/secrets"
)

const (
	// killGrace, killMargin and volumeTimeout follow from what an operation may take.
	killGrace, killMargin, volumeTimeout = operation.KillGrace, operation.KillMargin, operation.VolumeTimeout
	// pollEvery is the interval of polling a condition for which there is no notification.
	pollEvery = 50 * time.Millisecond
)

// ensureVolume creates the engine's brain on its node, unless it exists.
func (o *work) ensureVolume(ctx context.Context) error {
	if o.Row.VolumeID != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	v, err := o.createVolume(ctx, o.Row.JobID(), o.Row.NodeID)
	if err == nil {
		v, err = o.s.cluster.AwaitVolume(ctx, v.ID)
	}
	if err != nil {
		return err
	}
	o.Row.VolumeID, o.Row.VolumePath = v.ID, v.Path
	return nil
}

// ensureKey writes the engine's first key together with its owner, unless this operation
// already did. If anything outside the registry knows the engine_id, it was handed out
// before, whatever the registry contains, and is abandoned (burn).
func (o *work) ensureKey(ctx context.Context) error {
	what, err := o.handedOut(ctx)
	if err != nil {
		return err
	}
	k := o.newKey()
	if what == "" {
		err = o.s.vault.PutEngineKey(ctx, o.Row.EngineID, k, 0)
		what = "a key"
	} else {
		err = secrets.ErrConflict // perhaps this operation wrote it earlier
	}
	if errors.Is(err, secrets.ErrConflict) {
		k, err = o.s.vault.NewestKey(ctx, o.Row.EngineID)
		if errors.Is(err, secrets.ErrNotFound) || err == nil && !o.isOwn(k) {
			return o.burn(what)
		}
	}
	if err != nil {
		return err
	}
	o.Row.KeyVersion, o.Row.KeyID = k.Version, k.ID
	return nil
}

// ownWarm changes the owner in the secret of a warm engine to the user who claimed it, by
// check-and-set, so that it is claimed only once, whatever the registry contains.
func (o *work) ownWarm(ctx context.Context) error {
	op := o.Row.Op
	k, err := o.s.vault.EngineKey(ctx, o.Row.EngineID, op.KeyVersion, op.KeyID)
	if err == nil && k.Owner.ProductID == engine.WarmProduct && k.Owner.EngineID == o.Row.EngineID && k.Owner.Deployment == o.s.guard.ID() {
		own := &secrets.EngineKey{Key: k.Key, ID: k.ID, Owner: o.s.ownerOf(o.Row), Operation: o.ID}
		if err = o.s.vault.PutEngineKey(ctx, o.Row.EngineID, own, k.Version); err == nil {
			o.Row.KeyVersion, o.Row.KeyID = own.Version, own.ID
			return nil
		}
	}
	if err != nil && !errors.Is(err, secrets.ErrConflict) && !errors.Is(err, secrets.ErrNotFound) {
		return err
	}
	// It was written since then: by this operation, or for a user who got the engine
	// before.
	k, err = o.s.vault.NewestKey(ctx, o.Row.EngineID)
	switch {
	case err == nil && o.isOwn(k):
		o.Row.KeyVersion, o.Row.KeyID = k.Version, k.ID
		return nil
	case err != nil && !errors.Is(err, secrets.ErrNotFound):
		return err
	}
	return o.burn("a user")
}

// register registers the engine's job in Nomad with a count of 1. No old process is left: a
// start waits for that, and a provision has none.
func (o *work) register(ctx context.Context) error {
	job, err := o.render(1)
	if err != nil {
		return err
	}
	registered, tls, err := o.registerOnce(ctx, job)
	if err != nil {
		return err
	}
	row := o.Row
	row.Op.JobIndex, row.TLS, row.Shown, o.registeredAt = registered, tls, string(engine.Running), time.Now()
	row.Vanished = nil // nothing was left at the end of the drain
	row.Op.Deadline = time.Now().UTC().Add(o.s.opts.BootTimeout)
	return nil
}

// render returns the engine's job with a number of processes.
func (o *work) render(count int) (*api.Job, error) {
	template, err := o.s.jobFile()
	if err != nil {
		return nil, err
	}
	row := o.Row
	return template.Render(jobs.Engine{
		JobID: row.JobID(), EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID,
		Image: row.Image, Digest: o.s.Pinned(row), CPUMHz: row.Resources.CPUMHz, MemoryMB: row.Resources.MemoryMB,
		NodeID: row.NodeID, NodePool: row.NodePool, Isolation: row.Resources.Isolation, VolumeName: row.VolumeName, VolumePath: row.VolumePath, Count: count,
		Warm: row.Warm, Mark: o.ID, Shown: string(engine.Running), DeploymentID: o.s.guard.ID(),
	})
}

// registerOnce registers the job unless this operation has already done so: a crash, or a
// lost response, can come between the registration and its record. It returns the index
// after the registration, because for a registration that changes nothing, Nomad returns a
// wrong one, and whether the registered job serves TLS: another replica, with another
// configuration, may have registered it.
func (o *work) registerOnce(ctx context.Context, job *api.Job) (index uint64, tls bool, err error) {
	for first := true; ctx.Err() == nil; first = false {
		index = o.quietAt // 0 for a provision, and after a take-over
		if !first || index == 0 && o.Row.Op.Kind != engine.OpProvision {
			present, err := o.s.cluster.Job(ctx, *job.ID)
			switch {
			case err == nil && jobs.Mark(present) == o.ID && jobs.Runs(present):
				return *present.JobModifyIndex, jobs.ServesTLS(present), nil
			case err == nil:
				index = *present.JobModifyIndex
			case errors.Is(err, cluster.ErrNotFound):
				index = 0 // somebody has purged it since its process ended
			default:
				return 0, false, err
			}
		}
		if err := o.Fence(ctx); err != nil {
			return 0, false, err
		}
		if registered, err := o.s.cluster.Register(ctx, job, index); !errors.Is(err, cluster.ErrConflict) {
			return registered, jobs.ServesTLS(job), err
		}
		if !first && !pause.For(ctx, pollEvery) {
			break
		}
	}
	return 0, false, ctx.Err()
}
