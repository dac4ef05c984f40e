package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

const (
	// killGrace is the kill_timeout of the engine's job (SPEC section 4): how
	// long a process may take to end after SIGTERM.
	killGrace = 30 * time.Second
	// killMargin is for Nomad to notice and tell that the process is gone.
	killMargin = 10 * time.Second
	// volumeTimeout bounds the wait for a new host volume, which takes 6 to
	// 10 s on an ordinary client (measured).
	volumeTimeout = 45 * time.Second
	// pollEvery is how often a condition is looked at that nothing tells of.
	pollEvery = 50 * time.Millisecond
)

// ensureVolume makes the engine's brain on its node, or finds it there.
func (o *operation) ensureVolume(ctx context.Context) error {
	if o.row.VolumeID != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	template := o.s.template.Load()
	if template == nil {
		return fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	// The node refuses a second volume of the name; this spares it the volume of
	// an engine that is gone by now.
	if err := o.fence(ctx); err != nil {
		return err
	}
	v, err := o.s.cluster.EnsureVolume(ctx, o.row.JobID(), o.row.NodeID, template.Owner().Params())
	if err == nil {
		v, err = o.s.cluster.AwaitVolume(ctx, v.ID)
	}
	if err != nil {
		return err
	}
	o.row.VolumeID, o.row.VolumePath = v.ID, v.Path
	return nil
}

// ensureKey writes the engine's first key together with its owner, or finds the one
// that this operation wrote. An engine_id that anything outside the registry knows
// was handed out before, whatever the registry says: it is given up (burn).
func (o *operation) ensureKey(ctx context.Context) error {
	what, err := o.handedOut(ctx)
	if err != nil {
		return err
	}
	k := o.newKey()
	if what == "" {
		err = o.s.vault.PutEngineKey(ctx, o.row.EngineID, k, 0)
		what = "a key"
	} else {
		err = secrets.ErrConflict // perhaps this operation was here before
	}
	if errors.Is(err, secrets.ErrConflict) {
		k, err = o.s.vault.NewestKey(ctx, o.row.EngineID)
		if errors.Is(err, secrets.ErrNotFound) || err == nil && !o.isOwn(k) {
			return o.burn(what)
		}
	}
	if err != nil {
		return err
	}
	o.row.KeyVersion, o.row.KeyID = k.Version, k.ID
	return nil
}

// ownWarm makes the secret of a warm engine the user's who claimed it, by
// check-and-set: so it is claimed once, whatever the registry says.
func (o *operation) ownWarm(ctx context.Context) error {
	op := o.row.Op
	k, err := o.s.vault.EngineKey(ctx, o.row.EngineID, op.KeyVersion, op.KeyID)
	if err == nil && k.Owner.ProductID == engine.WarmProduct && k.Owner.EngineID == o.row.EngineID && k.Owner.Deployment == o.s.guard.ID() {
		own := &secrets.EngineKey{Key: k.Key, ID: k.ID, Owner: o.s.ownerOf(o.row), Operation: o.opID}
		if err = o.s.vault.PutEngineKey(ctx, o.row.EngineID, own, k.Version); err == nil {
			o.row.KeyVersion, o.row.KeyID = own.Version, own.ID
			return nil
		}
	}
	if err != nil && !errors.Is(err, secrets.ErrConflict) && !errors.Is(err, secrets.ErrNotFound) {
		return err
	}
	// It was written since: by this operation, or by whoever was given it before.
	k, err = o.s.vault.NewestKey(ctx, o.row.EngineID)
	switch {
	case err == nil && o.isOwn(k):
		o.row.KeyVersion, o.row.KeyID = k.Version, k.ID
		return nil
	case err != nil && !errors.Is(err, secrets.ErrNotFound):
		return err
	}
	return o.burn("a user")
}

// register gives the engine's job to Nomad with a count of 1. The process
// before is gone: a start waits for that, a provision has none.
func (o *operation) register(ctx context.Context) error {
	template := o.s.template.Load()
	if template == nil {
		return fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	row := o.row
	job, err := template.Render(jobs.Engine{
		JobID: row.JobID(), EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID,
		Image: row.Image, Digest: o.s.Pinned(row), CPUMHz: row.Resources.CPUMHz, MemoryMB: row.Resources.MemoryMB,
		NodeID: row.NodeID, NodePool: row.NodePool, VolumeName: row.VolumeName, VolumePath: row.VolumePath, Count: 1,
		Warm: row.Warm, Mark: o.opID, DeploymentID: o.s.guard.ID(),
	})
	if err != nil {
		return err
	}
	registered, err := o.registerOnce(ctx, job)
	if err != nil {
		return err
	}
	row.Op.JobIndex, o.registeredAt = registered, time.Now()
	row.Vanished = nil // nothing was left when the drain was over
	row.Op.Deadline = time.Now().UTC().Add(o.s.opts.BootTimeout)
	return nil
}

// registerOnce registers the job unless this operation did so already: a crash,
// or an answer that was lost, can come between the registration and its record.
// The index is that after the registration; Nomad tells a wrong one of a
// registration that changes nothing.
func (o *operation) registerOnce(ctx context.Context, job *api.Job) (uint64, error) {
	for first := true; ctx.Err() == nil; first = false {
		index := o.quietAt // 0 of a provision, and of what was taken over since
		if !first || index == 0 && o.row.Op.Kind != engine.OpProvision {
			present, err := o.s.cluster.Job(ctx, *job.ID)
			switch {
			case err == nil && jobs.Mark(present) == o.opID && jobs.Runs(present):
				return *present.JobModifyIndex, nil
			case err == nil:
				index = *present.JobModifyIndex
			case !errors.Is(err, cluster.ErrNotFound):
				return 0, err
			}
		}
		if err := o.fence(ctx); err != nil {
			return 0, err
		}
		if registered, err := o.s.cluster.Register(ctx, job, index); !errors.Is(err, cluster.ErrConflict) {
			return registered, err
		}
	}
	return 0, ctx.Err()
}
