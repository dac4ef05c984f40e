// Package witness judges one engine by its witnesses: the copies of its owner outside of
// the registry, in its secret in Vault and in its job and variable in Nomad. Read collects
// them, and the methods of Evidence decide without a store: which user an engine belongs to,
// which row it must have, and when only an admin can decide.
package witness

import (
	"context"
	"errors"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// Nomad reads the witnesses of an engine in Nomad.
type Nomad interface {
	Job(ctx context.Context, id string) (*api.Job, error)
	Volume(ctx context.Context, id string) (*cluster.Volume, error)
	Variable(ctx context.Context, jobID string) (*cluster.Variable, error)
}

// Vault reads the versions of an engine's secret, the newest first.
type Vault interface {
	Keys(ctx context.Context, engineID string) ([]*secrets.EngineKey, error)
}

// Subject is the engine to judge, and what lists contained about it.
type Subject struct {
	EngineID   string
	Deployment string            // the id of this deployment
	Row        *engine.Row       // nil: none
	Volumes    []*cluster.Volume // that have its name
	Live       int               // processes of its job that may still exist
	// Undone is the beginning of a destroy that undoes a provision.
	Undone engine.Operation
}

// Evidence is everything that the stores contain about one engine.
type Evidence struct {
	id         string
	deployment string           // the id of this deployment
	undone     engine.Operation // the beginning of a destroy that undoes a provision
	row        *engine.Row      // nil: none
	keys       []*secrets.EngineKey
	variable   *cluster.Variable // nil: none
	job        *jobs.Engine      // nil: none
	rest       string            // the state of an engine without a process, from the job
	live       int               // processes that may still exist
	volumes    []*cluster.Volume
}

// Read reads everything that Vault and Nomad contain about an engine. It returns the errors
// of the stores.
func Read(ctx context.Context, nomad Nomad, vault Vault, of Subject) (*Evidence, error) {
	e := &Evidence{id: of.EngineID, deployment: of.Deployment, undone: of.Undone, row: of.Row, live: of.Live}
	var err error
	if e.keys, err = vault.Keys(ctx, of.EngineID); err != nil {
		return nil, err
	}
	jobID := engine.JobID(of.EngineID)
	if e.variable, err = nomad.Variable(ctx, jobID); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return nil, err
	}
	job, err := nomad.Job(ctx, jobID)
	switch {
	case err == nil:
		described := jobs.Describe(job)
		e.job, e.rest = &described, jobs.Rest(job)
	case !errors.Is(err, cluster.ErrNotFound):
		return nil, err
	}
	for _, v := range of.Volumes {
		whole, err := nomad.Volume(ctx, v.ID) // a list contains no paths
		switch {
		case err == nil:
			e.volumes = append(e.volumes, whole)
		case !errors.Is(err, cluster.ErrNotFound):
			return nil, err
		}
	}
	return e, nil
}

// Owner returns the engine's owner in its secret; zero: unknown.
func (e *Evidence) Owner() secrets.Owner {
	for _, k := range e.keys {
		if k.Owner.EngineID == e.id {
			return k.Owner
		}
	}
	return secrets.Owner{}
}

// OfUser reports whether a secret is that of an engine with a user.
func OfUser(owner secrets.Owner) bool {
	return owner.EngineID != "" && owner.ProductID != engine.WarmProduct
}

// named returns the user in Nomad, from the variable or else from the job; empty: none, or
// a warm engine.
func (e *Evidence) named() (productID, userID string) {
	if e.variable != nil && e.variable.Witness != nil {
		productID, userID = e.variable.Witness.ProductID, e.variable.Witness.UserID
	} else if e.job != nil {
		productID, userID = e.job.ProductID, e.job.UserID
	}
	if productID == engine.WarmProduct {
		return "", ""
	}
	return productID, userID
}

// User returns the user in the secret, or else in Nomad; empty: none.
func (e *Evidence) User() (productID, userID string) {
	if owner := e.Owner(); OfUser(owner) {
		return owner.ProductID, owner.UserID
	}
	return e.named()
}

// whole reports whether there may be a user's memory: a process, or a volume that another
// record refers to. The list of processes may be older than the end of the engine, so the
// processes of a job that was removed since do not count.
func (e *Evidence) whole() bool {
	return len(e.volumes) > 0 && (len(e.keys) > 0 || e.variable != nil || e.job != nil) || e.live > 0 && e.job != nil
}

// Nothing reports whether nothing of the engine exists outside the registry.
func (e *Evidence) Nothing() bool {
	return len(e.keys) == 0 && e.variable == nil && e.job == nil && len(e.volumes) == 0
}

// Current returns the version of the secret that the engine got last: the one whose hash is
// in its variable, or else the newest. nil: there is none. sure reports that the variable
// does not contradict that the engine accepts it.
func (e *Evidence) Current() (k *secrets.EngineKey, sure bool) {
	for _, k := range e.keys {
		if e.variable != nil && secrets.Hash(k.Key) == e.variable.KeyHash {
			return k, true
		}
	}
	if len(e.keys) > 0 {
		return e.keys[0], e.variable == nil
	}
	return nil, false
}

// digestOf returns the digest to which an image of the engine was resolved at its last
// start; empty: it was not resolved.
func (e *Evidence) digestOf(image string) string {
	if j := e.job; j != nil && j.Image == image && j.Digest != "" {
		return j.Digest
	}
	if v := e.variable; v != nil && v.Witness != nil && v.Witness.Image == image {
		return v.Witness.Digest
	}
	return ""
}

// ID returns the engine_id.
func (e *Evidence) ID() string { return e.id }

// Volumes returns how many volumes have the engine's name.
func (e *Evidence) Volumes() int { return len(e.volumes) }

// NodeID returns the node of a volume that has the engine's name; empty: there is none.
func (e *Evidence) NodeID() string {
	if len(e.volumes) == 0 {
		return ""
	}
	return e.volumes[0].NodeID
}

// Own adds the newest version of the engine's secret.
func (e *Evidence) Own(k *secrets.EngineKey) { e.keys = append([]*secrets.EngineKey{k}, e.keys...) }

// Brain returns the volume with the engine's memory: the only one, or the one with which
// the engine was last started. nil: unknown.
func (e *Evidence) Brain() *cluster.Volume {
	if len(e.volumes) == 1 && !e.unfilled(e.volumes[0]) {
		return e.volumes[0]
	}
	for _, v := range e.volumes {
		if e.startedWith(v.ID) {
			return v
		}
	}
	return nil
}

// unfilled reports whether a volume was made for the brain in a snapshot, and the engine was
// never started with it: perhaps only a part of the brain is in it.
func (e *Evidence) unfilled(v *cluster.Volume) bool {
	name, ok := engine.ParseVolume(v.Name)
	return ok && name.Number > 1 && !name.Registered && !e.startedWith(v.ID)
}

// startedWith reports whether the engine was last started with a volume.
func (e *Evidence) startedWith(volumeID string) bool {
	return e.variable != nil && e.variable.Witness != nil && e.variable.Witness.VolumeID == volumeID
}
