package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
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
	if err == nil && k.Owner.ProductID == registry.WarmProduct && k.Owner.EngineID == o.row.EngineID && k.Owner.Deployment == o.s.guard.ID() {
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

// witnessOf is what the variable of a row's engine says of it.
func (s *Scheduler) witnessOf(row *registry.Engine) *cluster.Witness {
	return &cluster.Witness{
		Deployment: s.guard.ID(), EngineID: row.EngineID, ProductID: row.ProductID, ProductSlug: row.ProductSlug, UserID: row.UserID,
		Image: row.Image, Digest: row.Digest, CPUMHz: row.Resources.CPUMHz, MemoryMB: row.Resources.MemoryMB, NodePool: row.NodePool,
		NodeID: row.NodeID, VolumeID: row.VolumeID, VolumeName: row.VolumeName, CreatedAt: row.CreatedAt,
	}
}

// writeVariable puts the hash of the engine's key where its job's template
// reads it, and whose the engine is and what it runs beside it.
func (o *operation) writeVariable(ctx context.Context) error {
	if err := o.noteProviderKeys(ctx); err != nil {
		return err
	}
	if err := o.pin(ctx); err != nil {
		return err
	}
	if err := o.resize(ctx); err != nil {
		return err
	}
	if err := o.limitBrain(ctx); err != nil {
		return err
	}
	id, version, keyID := o.row.JobID(), o.row.KeyVersion, o.row.KeyID
	if o.row.Op.Kind == registry.OpRotateKey {
		version, keyID = o.row.Op.KeyVersion, o.row.Op.KeyID
	}
	has := true
	if o.row.Op.Kind == registry.OpStart || o.row.Op.Kind == registry.OpRestart {
		// Past the cache: a key that this replica alone still knows is lost.
		var err error
		if has, err = o.s.vault.HasKey(ctx, o.row.EngineID, version, keyID); err != nil {
			return err
		}
	}
	var key *secrets.EngineKey
	var err error
	if has {
		key, err = o.s.vault.EngineKey(ctx, o.row.EngineID, version, keyID)
	} else {
		key, err = o.rekey(ctx)
	}
	if err != nil {
		return err
	}
	if !o.s.agree(key, o.row) {
		return o.s.contradiction(ctx, o.row, key.Owner)
	}
	put := &cluster.Variable{KeyHash: secrets.Hash(key.Key), Witness: o.s.witnessOf(o.row)}
	for first := true; ctx.Err() == nil; first = false {
		put.Index = 0
		if !first || o.row.Op.Kind != registry.OpProvision {
			held, err := o.s.cluster.Variable(ctx, id)
			switch {
			case err == nil && held.KeyHash == put.KeyHash && held.Witness != nil && sameToStart(held.Witness, put.Witness):
				return nil
			case err == nil:
				put.Index = held.Index
			case !errors.Is(err, cluster.ErrNotFound):
				return err
			}
		}
		if err := o.fence(ctx); err != nil {
			return err
		}
		if err := o.s.cluster.PutVariable(ctx, id, put); !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return ctx.Err()
}

// sameToStart says whether two witnesses tell the same of what an engine's next start
// may change.
func sameToStart(a, b *cluster.Witness) bool {
	return a.VolumeID == b.VolumeID && a.Digest == b.Digest && a.CPUMHz == b.CPUMHz && a.MemoryMB == b.MemoryMB
}

// resize gives an engine that is being started what its policy says by now. A restart
// for new provider keys does not: nobody asked for it, and where there is no room for a
// larger engine it would end a good one.
func (o *operation) resize(ctx context.Context) error {
	if o.row.Op.Kind != registry.OpStart {
		return nil
	}
	now, err := o.s.resourcesNow(ctx, o.row)
	if err == nil {
		o.row.Resources = now
	}
	return err
}

// limitBrain gives the engine's volume the quota that its resources say, if it has another.
// No process has the volume then: Nomad would refuse it. A volume that was registered again
// after Nomad had lost it is no plugin's any more, and keeps the quota that it has on its
// node's filesystem.
func (o *operation) limitBrain(ctx context.Context) error {
	kind, limit := o.row.Op.Kind, o.row.Resources.BrainMB
	if limit == o.row.QuotaMB || kind != registry.OpProvision && kind != registry.OpStart {
		return nil
	}
	if o.row.VolumeName != "" {
		o.log.Warn("the engine's volume was registered again, and its quota cannot be changed", "brain_mb", limit, "quota_mb", o.row.QuotaMB)
		return nil
	}
	template := o.s.template.Load()
	if template == nil {
		return fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	if err := o.fence(ctx); err != nil {
		return err
	}
	if err := o.s.cluster.LimitVolume(ctx, o.row.VolumeID, o.row.JobID(), o.row.NodeID, template.Owner().Params(), limit); err != nil {
		return err
	}
	o.row.QuotaMB = limit
	return nil
}

// rekey gives an engine that has no process a new key, since Vault has lost the one
// that its row names. Only the engine itself knew whose hash it checks; from its
// next start on that is this one's.
func (o *operation) rekey(ctx context.Context) (*secrets.EngineKey, error) {
	k, err := o.s.vault.NewestKey(ctx, o.row.EngineID)
	if err == nil && o.isOwn(k) { // written before a crash
		o.row.KeyVersion, o.row.KeyID = k.Version, k.ID
		return k, nil
	}
	if err != nil && !errors.Is(err, secrets.ErrNotFound) {
		return nil, err
	}
	if err == nil && !o.s.agree(k, o.row) {
		return nil, o.s.contradiction(ctx, o.row, k.Owner)
	}
	newest, err := o.s.vault.NewestVersion(ctx, o.row.EngineID)
	if err != nil {
		return nil, err
	}
	if err := o.fence(ctx); err != nil {
		return nil, err
	}
	k = o.newKey()
	if err := o.s.vault.PutEngineKey(ctx, o.row.EngineID, k, newest); err != nil {
		return nil, err
	}
	o.log.Warn("the engine's key is not in Vault any more; it gets a new one with this start", "version", k.Version)
	o.row.KeyVersion, o.row.KeyID = k.Version, k.ID
	return k, nil
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
		if !first || index == 0 && o.row.Op.Kind != registry.OpProvision {
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

// quiesce sets the count of the engine's job to 0, so that its process ends and
// is not started again. Undoing or destroying, it always leaves its mark: where
// the count is 0 already, it is that which moves the index under an owner that
// was paused before its registration.
func (o *operation) quiesce(ctx context.Context) error {
	mark := ""
	if o.row.Op.Undo != "" || o.row.Op.Kind == registry.OpDestroy {
		mark = o.opID + "-end"
	}
	if err := o.letEnd(ctx); err != nil {
		return err
	}
	rest := "" // in what state it is then, for a registry that is lost
	switch o.row.Op.Kind {
	case registry.OpStop:
		rest = string(registry.Stopped)
	case registry.OpSleep:
		rest = string(registry.Sleeping)
	}
	for {
		index, err := o.s.cluster.ScaleToZero(ctx, o.row.JobID(), mark, rest, func() error { return o.fence(ctx) })
		o.quietAt = index
		switch {
		case errors.Is(err, cluster.ErrNotFound):
			if o.row.Op.Undo != "" && o.row.AllocID != "" && o.row.Vanished == nil { // somebody purged the job meanwhile
				o.row.Vanished = &registry.Vanished{AllocID: o.row.AllocID, NodeID: o.row.NodeID, Since: time.Now().UTC()}
			}
			return nil
		case !errors.Is(err, cluster.ErrConflict):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// awaitGone waits until no process of the engine is left, as its node says.
func (o *operation) awaitGone(ctx context.Context) error {
	if err := o.letEnd(ctx); err != nil { // its node may have been silent until now
		return err
	}
	var allocs []cluster.Alloc
	err := o.whileOwned(ctx, func(ctx context.Context) (err error) {
		allocs, err = o.processesGone(ctx)
		return err
	})
	if errors.Is(err, errVanished) {
		err = o.outlastVanished(ctx)
	}
	if err == nil {
		err = o.prove(ctx, allocs)
	}
	return o.noteSilence(ctx, err)
}

// noteSilence says in the row of a running engine that its node is silent, that Nomad
// does not know its volume or that its process crashed, when that is why an operation
// waits: nobody else says so while it is under way.
func (o *operation) noteSilence(ctx context.Context, err error) error {
	kind, reason := o.row.Op.Kind, ""
	switch {
	case errors.Is(err, errNodeSilent):
		reason = engine.ReasonNodeDown
	case errors.Is(err, errStateLost):
		reason = engine.ReasonVolumeUnknown
	case errors.Is(err, errUnproven):
		reason = engine.ReasonCrashed
	}
	if reason == "" || o.row.State != registry.Running || kind != registry.OpStop && kind != registry.OpRotateKey {
		return err
	}
	o.row.State, o.row.Reason = registry.Failed, reason
	id, berr := o.s.begin(ctx, o.row, audit.ActionHealthFailed, actorSystem, map[string]any{"reason": reason})
	if berr != nil {
		o.row.State, o.row.Reason = registry.Running, ""
		return err // it is said at the next try
	}
	began, serr := time.Now(), o.save(ctx)
	o.s.abandon(ctx, id, began, serr)
	if serr != nil {
		return serr
	}
	return err
}

// drainUntil is when an operation gives up waiting for a process, for now. After the
// deadline the caller has been told; each later try waits as long as a process may
// take to end.
func (o *operation) drainUntil() time.Time {
	until := o.row.Op.Deadline
	if later := time.Now().Add(killGrace); o.answeredAlready() && until.Before(later) {
		until = later
	}
	if v := o.row.Vanished; v != nil {
		if later := v.Since.Add(vanishedGrace + killMargin); until.Before(later) {
			until = later
		}
	}
	return until
}

// processesGone waits until every process of the engine that Nomad knows is gone, by
// its word, and returns the allocations. errVanished: the row knows of one that Nomad
// does not know.
func (o *operation) processesGone(ctx context.Context) (allocs []cluster.Alloc, err error) {
	ctx, cancel := context.WithDeadline(ctx, o.drainUntil())
	defer cancel()
	w := o.s.cluster.Watch(o.row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, o.unconfirmed(ctx, err)
	}
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		for _, a := range state.Allocs {
			if o.s.nodeSilent(a.NodeID) {
				return false, errNodeSilent
			}
			if !a.Terminal() {
				return false, nil
			}
		}
		return true, nil
	})
	if errors.Is(err, errNodeSilent) && o.row.Op.Kind == registry.OpDestroy {
		return nil, nil // its volume is listed as unreachable
	}
	if err != nil {
		return nil, o.unconfirmed(ctx, err, allocs...)
	}
	return allocs, o.missed(ctx, allocs)
}

var errNodeSilent = errors.New("the engine's node is silent")

func (o *operation) answeredAlready() bool {
	select {
	case <-o.answered:
		return true
	default:
		return false
	}
}

// unconfirmed is what a caller hears when it is not known that a process ended; allocs
// are those that it may be of.
func (o *operation) unconfirmed(ctx context.Context, err error, allocs ...cluster.Alloc) error {
	timedOut, lost := errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, errStateLost)
	if !timedOut && !lost && !errors.Is(err, errNodeSilent) && !errors.Is(err, errUnproven) {
		return err
	}
	switch {
	case o.row.Op.Kind == registry.OpRotateKey:
		message := "the engine has not confirmed its new key, and its process is not known to be gone; the rotation goes on in the background"
		if lost {
			message = "the engine has not confirmed its new key: " + whatToDo
		}
		return &Error{Code: RotationUnconfirmed, Message: message, Err: err}
	case lost && o.row.Op.Kind == registry.OpStart:
		return &Error{Code: CapacityExhausted, Message: "the engine cannot be started: " + whatToDo, Err: err, RetryAfter: retryCapacity}
	case lost:
		return &Error{Code: StopUnconfirmed, Message: "it cannot be confirmed that the engine's process is gone; the stop is carried out when it can: " + whatToDo, Err: err}
	}
	why := ""
	if slices.ContainsFunc(allocs, func(a cluster.Alloc) bool { return !a.Terminal() && a.Pulling != "" }) {
		why = ", for it is still pulling its image" // which Nomad does not break off
	}
	if o.row.Op.Kind == registry.OpStart {
		return &Error{Code: CapacityExhausted, Message: "the engine's node does not confirm that the process before is gone" + why + "; try again later", Err: err, RetryAfter: retryCapacity}
	}
	return &Error{Code: StopUnconfirmed, Message: "the engine's node does not confirm that the process is gone" + why + "; the stop is carried out when it does", Err: err}
}

// NodeSilent says whether the servers do not hear from a node.
func (s *Scheduler) nodeSilent(nodeID string) bool {
	node, known := s.cluster.Node(nodeID)
	return !known || node.Down
}

// purge stops the engine's job for good.
func (o *operation) purge(ctx context.Context) error {
	return o.s.cluster.Purge(ctx, o.row.JobID())
}

// deleteVolume deletes the brain. Where that cannot be confirmed it is left: the row
// keeps its id, and the volume is listed as unreachable.
func (o *operation) deleteVolume(ctx context.Context) error {
	if len(o.row.Unproven) > 0 {
		return nil
	}
	for {
		left, err := o.s.removeVolumes(ctx, remains{o.row.EngineID, o.row.NodeID, o.row.VolumeID, o.row.VolumePath, o.row.Volume()})
		switch {
		case err == nil && left == "":
			o.row.VolumeID = ""
			return nil
		case err == nil:
			o.log.Warn("the volume of a destroyed engine is left on its node, and listed (GET /unreachable-volumes)", "why", left)
			return nil
		case o.row.NodeID != "" && o.row.VolumeID != "" && o.s.nodeSilent(o.row.NodeID):
			return nil
		case !errors.Is(err, cluster.ErrInUse) || time.Now().After(o.row.Op.Deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// deleteVariable removes the hash of the engine's key.
func (o *operation) deleteVariable(ctx context.Context) error {
	return o.s.cluster.DeleteVariable(ctx, o.row.JobID())
}

// deleteKey removes every version of the engine's key.
func (o *operation) deleteKey(ctx context.Context) error {
	return o.s.vault.DeleteEngine(ctx, o.row.EngineID)
}

// removeRow ends the engine: row, index and place in the quota go at once. A
// volume that could not be deleted is listed as unreachable.
func (o *operation) removeRow(ctx context.Context) error {
	err := o.s.store.Remove(ctx, o.row, o.row.VolumeID != "")
	if errors.Is(err, registry.ErrConflict) {
		now, gerr := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		if err = nil; !errors.Is(gerr, registry.ErrNotFound) { // else an answer was lost
			err = o.lost(ctx, now, gerr)
		}
	}
	o.removed = err == nil
	return err
}

// settle waits until the replica whose operation was interrupted has said that it
// does nothing more, or is gone. Of an engine that is somebody else's by its
// witnesses, the row alone goes.
func (o *operation) settle(ctx context.Context) error {
	for o.row.Op.Supersedes != "" {
		row, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		if err != nil {
			return o.lost(ctx, nil, err)
		}
		if row.Op == nil || row.Op.ID != o.row.Op.ID || row.Op.Owner != o.row.Op.Owner {
			return errTakenOver
		}
		o.row = row
		replicas, err := o.s.store.Replicas(ctx)
		if err != nil {
			return err
		}
		// Here nothing else runs on the engine.
		if by := row.Op.Supersedes; by == "" || by == o.s.replica.ID || !replicas[by] {
			o.row.Op.Supersedes = ""
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	foreign, err := o.releaseForeign(ctx)
	if err != nil || !foreign {
		return err
	}
	o.releaseRow()
	return errDetour
}
