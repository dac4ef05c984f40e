package reconcile

import (
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// Witnesses is all that the stores say of one engine.
type Witnesses struct {
	id         string
	deployment string           // the id of this deployment
	undone     engine.Operation // how a destroy begins that undoes a provision
	row        *engine.Row      // nil: there is none
	keys       []*secrets.EngineKey
	variable   *cluster.Variable // nil: there is none
	job        *jobs.Engine      // nil: there is none
	rest       string            // what the job says of an engine that has no process
	live       int               // processes that are not known to be gone
	volumes    []*cluster.Volume
}

// WitnessesOf reads what the stores say of an engine. f is what a list of all had
// of it: which volumes to ask for, and the processes of a job that is still there.
func (r *Reconciler) WitnessesOf(ctx context.Context, f *Found, row *engine.Row) (*Witnesses, error) {
	w := &Witnesses{id: f.id, deployment: r.d.Guard.ID(), undone: r.d.Undone, row: row}
	var err error
	if w.keys, err = r.d.Vault.Keys(ctx, f.id); err != nil {
		return nil, err
	}
	jobID := engine.JobID(f.id)
	if w.variable, err = r.d.Nomad.Variable(ctx, jobID); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return nil, err
	}
	job, err := r.d.Nomad.Job(ctx, jobID)
	switch {
	case err == nil:
		described := jobs.Describe(job)
		w.job, w.rest = &described, jobs.Rest(job)
	case !errors.Is(err, cluster.ErrNotFound):
		return nil, err
	}
	if f.job != nil {
		w.live = len(f.job.Live)
	}
	for _, v := range f.volumes {
		whole, err := r.d.Nomad.Volume(ctx, v.ID) // a list tells no path
		switch {
		case err == nil:
			w.volumes = append(w.volumes, whole)
		case !errors.Is(err, cluster.ErrNotFound):
			return nil, err
		}
	}
	return w, nil
}

// owner is whose the engine is by its secret; zero: it says nothing.
func (w *Witnesses) owner() secrets.Owner {
	for _, k := range w.keys {
		if k.Owner.EngineID == w.id {
			return k.Owner
		}
	}
	return secrets.Owner{}
}

// ofUser says whether a secret is of an engine that a user was given.
func ofUser(owner secrets.Owner) bool {
	return owner.EngineID != "" && owner.ProductID != engine.WarmProduct
}

// named is the user whom Nomad names, by the variable or else by the job; empty:
// none, or a warm engine's.
func (w *Witnesses) named() (productID, userID string) {
	if w.variable != nil && w.variable.Witness != nil {
		productID, userID = w.variable.Witness.ProductID, w.variable.Witness.UserID
	} else if w.job != nil {
		productID, userID = w.job.ProductID, w.job.UserID
	}
	if productID == engine.WarmProduct {
		return "", ""
	}
	return productID, userID
}

// User is whom the witnesses name: the secret, or else Nomad; empty: none does.
func (w *Witnesses) User() (productID, userID string) {
	if owner := w.owner(); ofUser(owner) {
		return owner.ProductID, owner.UserID
	}
	return w.named()
}

// whole says whether there may be somebody's memory: a volume that something else
// knows of, or a process. The list of processes may be older than the end of the
// engine: of a job that is gone since it says nothing.
func (w *Witnesses) whole() bool {
	return len(w.volumes) > 0 && (len(w.keys) > 0 || w.variable != nil || w.job != nil) || w.live > 0 && w.job != nil
}

// nothing says whether there is nothing of the engine outside the registry.
func (w *Witnesses) nothing() bool {
	return len(w.keys) == 0 && w.variable == nil && w.job == nil && len(w.volumes) == 0
}

// Current is the version of the secret that the engine was given last: the one
// whose hash is in its variable, else the newest. nil: there is none. sure says that
// the engine takes it: its variable does not say otherwise.
func (w *Witnesses) Current() (k *secrets.EngineKey, sure bool) {
	for _, k := range w.keys {
		if w.variable != nil && secrets.Hash(k.Key) == w.variable.KeyHash {
			return k, true
		}
	}
	if len(w.keys) > 0 {
		return w.keys[0], w.variable == nil
	}
	return nil, false
}

// digestOf is what an image of the engine was resolved to when it was started last;
// empty: it was not.
func (w *Witnesses) digestOf(image string) string {
	if j := w.job; j != nil && j.Image == image && j.Digest != "" {
		return j.Digest
	}
	if v := w.variable; v != nil && v.Witness != nil && v.Witness.Image == image {
		return v.Witness.Digest
	}
	return ""
}

// ID is the engine_id.
func (w *Witnesses) ID() string { return w.id }

// Volumes is how many volumes have the engine's name.
func (w *Witnesses) Volumes() int { return len(w.volumes) }

// Own is told the newest version of the engine's secret.
func (w *Witnesses) Own(k *secrets.EngineKey) { w.keys = append([]*secrets.EngineKey{k}, w.keys...) }

// Brain is the volume that holds the engine's memory: the only one, or the one that
// the engine was started with last. nil: that is not known.
func (w *Witnesses) Brain() *cluster.Volume {
	if len(w.volumes) == 1 {
		return w.volumes[0]
	}
	for _, v := range w.volumes {
		if w.variable != nil && w.variable.Witness != nil && w.variable.Witness.VolumeID == v.ID {
			return v
		}
	}
	return nil
}
