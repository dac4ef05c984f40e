package scheduler

import (
	"context"
	"errors"
	"fmt"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// witnessOf is what the variable of a row's engine says of it.
func (s *Scheduler) witnessOf(row *engine.Row) *cluster.Witness {
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
	if o.row.Op.Kind == engine.OpRotateKey {
		version, keyID = o.row.Op.KeyVersion, o.row.Op.KeyID
	}
	has := true
	if o.row.Op.Kind == engine.OpStart || o.row.Op.Kind == engine.OpRestart {
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
		if !first || o.row.Op.Kind != engine.OpProvision {
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
	if o.row.Op.Kind != engine.OpStart {
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
	if limit == o.row.QuotaMB || kind != engine.OpProvision && kind != engine.OpStart {
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
