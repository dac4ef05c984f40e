package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// witnessOf returns the witness in the variable of a row's engine.
func (s *Scheduler) witnessOf(row *engine.Row) *cluster.Witness {
	return &cluster.Witness{
		Deployment: s.guard.ID(), EngineID: row.EngineID, ProductID: row.ProductID, ProductSlug: row.ProductSlug, UserID: row.UserID,
		Image: row.Image, Digest: row.Digest, CPUMHz: row.Resources.CPUMHz, MemoryMB: row.Resources.MemoryMB, NodePool: row.NodePool, Isolation: row.Resources.Isolation,
		NodeID: row.NodeID, VolumeID: row.VolumeID, VolumeName: row.VolumeName, CreatedAt: row.CreatedAt,
	}
}

// writeVariable writes the engine's variable: the hash of its key, which its job's template
// reads, and its witness.
func (o *work) writeVariable(ctx context.Context) error {
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
	id, version, keyID := o.Row.JobID(), o.Row.KeyVersion, o.Row.KeyID
	if o.Row.Op.Kind == engine.OpRotateKey {
		version, keyID = o.Row.Op.KeyVersion, o.Row.Op.KeyID
	}
	has := true
	if kind := o.Row.Op.Kind; kind == engine.OpStart || kind == engine.OpRestart || kind == engine.OpMove || kind == engine.OpRestore && o.Row.Op.Undo != "" {
		// Without the cache, because a key that only this replica still knows is lost.
		var err error
		if has, err = o.s.vault.HasKey(ctx, o.Row.EngineID, version, keyID); err != nil {
			return err
		}
	}
	var key *secrets.EngineKey
	var err error
	if has {
		key, err = o.s.vault.EngineKey(ctx, o.Row.EngineID, version, keyID)
	} else {
		key, err = o.rekey(ctx)
	}
	if err != nil {
		return err
	}
	if !o.s.agree(key, o.Row) {
		return o.s.contradiction(ctx, o.Row, key.Owner)
	}
	put := &cluster.Variable{KeyHash: secrets.Hash(key.Key), Witness: o.s.witnessOf(o.Row)}
	for first := true; ctx.Err() == nil; first = false {
		put.Index = 0
		if !first || o.Row.Op.Kind != engine.OpProvision {
			held, err := o.s.cluster.Variable(ctx, id)
			switch {
			case err == nil && held.KeyHash == put.KeyHash && held.Witness != nil && sameToStart(held.Witness, put.Witness):
				return nil
			case err == nil:
				if err := o.newestBrain(ctx, held.Witness); err != nil {
					return err
				}
				put.Index = held.Index
			case !errors.Is(err, cluster.ErrNotFound):
				return err
			}
		}
		if err := o.Fence(ctx); err != nil {
			return err
		}
		if err := o.s.cluster.PutVariable(ctx, id, put); !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return ctx.Err()
}

// sameToStart reports whether two witnesses are equal in what an engine's next start may
// change.
func sameToStart(a, b *cluster.Witness) bool {
	return a.VolumeID == b.VolumeID && a.Digest == b.Digest && a.CPUMHz == b.CPUMHz && a.MemoryMB == b.MemoryMB && a.Isolation == b.Isolation
}

// resize gives an engine that is being started the resources in its current policy. A
// restart for new provider keys does not, because nobody requested it, and without enough
// capacity for a larger engine it would end a working one.
func (o *work) resize(ctx context.Context) error {
	if o.Row.Op.Kind != engine.OpStart {
		return nil
	}
	now, err := o.s.resourcesNow(ctx, o.Row)
	if err == nil {
		o.Row.Resources = now
	}
	return err
}

// limitBrain sets the quota of the engine's volume to that in its resources, unless it has
// it already. No process may have the volume then, because Nomad would refuse the change. A
// volume that was registered again after Nomad had lost it belongs to no plugin any more,
// and keeps its quota on the node's filesystem.
func (o *work) limitBrain(ctx context.Context) error {
	kind, limit := o.Row.Op.Kind, o.Row.Resources.BrainMB
	if limit == o.Row.QuotaMB || kind != engine.OpProvision && kind != engine.OpStart && kind != engine.OpRestore && kind != engine.OpMove {
		return nil
	}
	if name, _ := engine.ParseVolume(o.Row.Volume()); name.Registered {
		o.Log.Warn("cannot change the quota of the engine's volume, because it was registered again", "brain_mb", limit, "quota_mb", o.Row.QuotaMB)
		return nil
	}
	template, err := o.s.jobFile()
	if err != nil {
		return err
	}
	if err := o.Fence(ctx); err != nil {
		return err
	}
	if err := o.s.cluster.LimitVolume(ctx, o.Row.VolumeID, o.Row.Volume(), o.Row.NodeID, template.Owner().Params(), limit); err != nil {
		return err
	}
	o.Row.QuotaMB = limit
	return nil
}

// rekey gives an engine without a process a new key, because Vault has lost the one in its
// row. From its next start on the engine accepts the new key.
func (o *work) rekey(ctx context.Context) (*secrets.EngineKey, error) {
	k, err := o.s.vault.NewestKey(ctx, o.Row.EngineID)
	if err == nil && o.isOwn(k) { // written before a crash
		o.Row.KeyVersion, o.Row.KeyID = k.Version, k.ID
		return k, nil
	}
	if err != nil && !errors.Is(err, secrets.ErrNotFound) {
		return nil, err
	}
	if err == nil && !o.s.agree(k, o.Row) {
		return nil, o.s.contradiction(ctx, o.Row, k.Owner)
	}
	newest, err := o.s.vault.NewestVersion(ctx, o.Row.EngineID)
	if err != nil {
		return nil, err
	}
	if err := o.Fence(ctx); err != nil {
		return nil, err
	}
	k = o.newKey()
	if err := o.s.vault.PutEngineKey(ctx, o.Row.EngineID, k, newest); err != nil {
		return nil, err
	}
	o.Log.Warn("the engine's key is no longer in Vault; it gets a new one with this start", "version", k.Version)
	o.Row.KeyVersion, o.Row.KeyID = k.Version, k.ID
	return k, nil
}
