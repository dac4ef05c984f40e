package reconcile

import (
	"context"
	"errors"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// Witnesses is everything that the stores contain about one engine.
type Witnesses struct {
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

// WitnessesOf reads everything that the stores contain about an engine. f is what the lists
// contained about it: which volumes to read, and the processes of an existing job.
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
		whole, err := r.d.Nomad.Volume(ctx, v.ID) // a list contains no paths
		switch {
		case err == nil:
			w.volumes = append(w.volumes, whole)
		case !errors.Is(err, cluster.ErrNotFound):
			return nil, err
		}
	}
	return w, nil
}

// owner returns the engine's owner in its secret; zero: unknown.
func (w *Witnesses) owner() secrets.Owner {
	for _, k := range w.keys {
		if k.Owner.EngineID == w.id {
			return k.Owner
		}
	}
	return secrets.Owner{}
}

// ofUser reports whether a secret is that of an engine with a user.
func ofUser(owner secrets.Owner) bool {
	return owner.EngineID != "" && owner.ProductID != engine.WarmProduct
}

// named returns the user in Nomad, from the variable or else from the job; empty: none, or
// a warm engine.
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

// User returns the user in the secret, or else in Nomad; empty: none.
func (w *Witnesses) User() (productID, userID string) {
	if owner := w.owner(); ofUser(owner) {
		return owner.ProductID, owner.UserID
	}
	return w.named()
}

// whole reports whether there may be a user's memory: a process, or a volume that another
// record refers to. The list of processes may be older than the end of the engine, so the
// processes of a job that was removed since do not count.
func (w *Witnesses) whole() bool {
	return len(w.volumes) > 0 && (len(w.keys) > 0 || w.variable != nil || w.job != nil) || w.live > 0 && w.job != nil
}

// nothing reports whether nothing of the engine exists outside the registry.
func (w *Witnesses) nothing() bool {
	return len(w.keys) == 0 && w.variable == nil && w.job == nil && len(w.volumes) == 0
}

// Current returns the version of the secret that the engine got last: the one whose hash is
// in its variable, or else the newest. nil: there is none. sure reports that the variable
// does not contradict that the engine accepts it.
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

// digestOf returns the digest to which an image of the engine was resolved at its last
// start; empty: it was not resolved.
func (w *Witnesses) digestOf(image string) string {
	if j := w.job; j != nil && j.Image == image && j.Digest != "" {
		return j.Digest
	}
	if v := w.variable; v != nil && v.Witness != nil && v.Witness.Image == image {
		return v.Witness.Digest
	}
	return ""
}

// ID returns the engine_id.
func (w *Witnesses) ID() string { return w.id }

// Volumes returns how many volumes have the engine's name.
func (w *Witnesses) Volumes() int { return len(w.volumes) }

// Own adds the newest version of the engine's secret.
func (w *Witnesses) Own(k *secrets.EngineKey) { w.keys = append([]*secrets.EngineKey{k}, w.keys...) }

// Brain returns the volume with the engine's memory: the only one, or the one with which
// the engine was last started. nil: unknown.
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
