package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// witnesses is all that the stores say of one engine.
type witnesses struct {
	id         string
	deployment string           // the id of this deployment
	row        *registry.Engine // nil: there is none
	keys       []*secrets.EngineKey
	variable   *cluster.Variable // nil: there is none
	job        *jobs.Engine      // nil: there is none
	rest       string            // what the job says of an engine that has no process
	live       int               // processes that are not known to be gone
	volumes    []*cluster.Volume
}

// witnessesOf reads what the stores say of an engine. f is what a list of all had
// of it: which volumes to ask for, and the processes of a job that is still there.
func (s *Scheduler) witnessesOf(ctx context.Context, f *found, row *registry.Engine) (*witnesses, error) {
	w := &witnesses{id: f.id, deployment: s.guard.id(), row: row}
	var err error
	if w.keys, err = s.vault.Keys(ctx, f.id); err != nil {
		return nil, err
	}
	jobID := registry.JobID(f.id)
	if w.variable, err = s.cluster.Variable(ctx, jobID); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return nil, err
	}
	job, err := s.cluster.Job(ctx, jobID)
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
		whole, err := s.cluster.Volume(ctx, v.ID) // a list tells no path
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
func (w *witnesses) owner() secrets.Owner {
	for _, k := range w.keys {
		if k.Owner.EngineID == w.id {
			return k.Owner
		}
	}
	return secrets.Owner{}
}

// named is the user whom Nomad names, by the variable or else by the job; empty:
// none, or a warm engine's.
func (w *witnesses) named() (productID, userID string) {
	if w.variable != nil && w.variable.Witness != nil {
		productID, userID = w.variable.Witness.ProductID, w.variable.Witness.UserID
	} else if w.job != nil {
		productID, userID = w.job.ProductID, w.job.UserID
	}
	if productID == registry.WarmProduct {
		return "", ""
	}
	return productID, userID
}

// user is whom the witnesses name: the secret, or else Nomad; empty: none does.
func (w *witnesses) user() (productID, userID string) {
	if owner := w.owner(); ofUser(owner) {
		return owner.ProductID, owner.UserID
	}
	return w.named()
}

// whole says whether there may be somebody's memory: a volume that something else
// knows of, or a process. The list of processes may be older than the end of the
// engine: of a job that is gone since it says nothing.
func (w *witnesses) whole() bool {
	return len(w.volumes) > 0 && (len(w.keys) > 0 || w.variable != nil || w.job != nil) || w.live > 0 && w.job != nil
}

// nothing says whether there is nothing of the engine outside the registry.
func (w *witnesses) nothing() bool {
	return len(w.keys) == 0 && w.variable == nil && w.job == nil && len(w.volumes) == 0
}

// current is the version of the secret that the engine was given last: the one
// whose hash is in its variable, else the newest. nil: there is none. sure says that
// the engine takes it: its variable does not say otherwise.
func (w *witnesses) current() (k *secrets.EngineKey, sure bool) {
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

// lostKey is the name of a key that no secret has: that of an engine whose key Vault
// has lost. It is given a new one as any other whose key is missing.
const lostKey = "lost"

// whyContradiction is why an engine is quarantined whose row is not its own.
const whyContradiction = "its row names another owner than its secret in Vault"

// ruling is what is to be done about an engine when the registry went back.
type ruling struct {
	act Act
	why string
	row *registry.Engine // as it is to be written
}

// judgeLost says what is to be done about an engine that has no row. back: the registry
// as a whole is an older one or new, and Nomad's servers may have lost their state with
// it. Otherwise a key alone is what is left of an engine.
func (w *witnesses) judgeLost(now time.Time, back bool) ruling {
	owner := w.owner()
	productID, userID := w.named()
	switch {
	case owner != secrets.Owner{} && owner.Deployment != w.deployment:
		return ruling{} // another deployment's
	case !w.whole() && back && ofUser(owner):
		return ruling{act: ActQuarantine, why: "its secret in Vault says whose it is, and Nomad knows no volume of it"}
	case !w.whole():
		return ruling{}
	case owner == secrets.Owner{}:
		return ruling{act: ActQuarantine, why: "its secret in Vault does not say whose it is"}
	case owner.ProductID == registry.WarmProduct && productID == "":
		return ruling{} // a warm engine that nobody was given: nobody's memory
	case owner.ProductID == registry.WarmProduct:
		return ruling{act: ActQuarantine, why: "by its secret in Vault nobody was given it, and Nomad names a user"}
	case productID != "" && (productID != owner.ProductID || userID != owner.UserID):
		return ruling{act: ActQuarantine, why: "its secret in Vault and Nomad name different users"}
	case w.brain() == nil:
		return ruling{act: ActQuarantine, why: fmt.Sprintf("%d volumes have its name", len(w.volumes))}
	}
	return ruling{act: ActRebuild, why: "it has a user in Vault and no row", row: w.rebuilt(owner, now)}
}

// ofUser says whether a secret is of an engine that a user was given.
func ofUser(owner secrets.Owner) bool {
	return owner.EngineID != "" && owner.ProductID != registry.WarmProduct
}

// rebuilt is a row made from the witnesses alone. Its image is empty where nothing
// says it.
func (w *witnesses) rebuilt(owner secrets.Owner, now time.Time) *registry.Engine {
	row := &registry.Engine{
		EngineID: w.id, ProductID: owner.ProductID, UserID: owner.UserID, CreatedAt: now.Truncate(time.Millisecond),
		State: registry.Failed, Desired: registry.Running, Reason: engine.ReasonRecovered,
	}
	if w.variable != nil && w.variable.Witness != nil {
		v := w.variable.Witness
		row.Image, row.Resources, row.NodePool = v.Image, registry.Resources{CPUMHz: v.CPUMHz, MemoryMB: v.MemoryMB}, v.NodePool
		row.CreatedAt = v.CreatedAt
	}
	if j := w.job; j != nil {
		row.Image, row.Resources, row.NodePool = j.Image, registry.Resources{CPUMHz: j.CPUMHz, MemoryMB: j.MemoryMB}, j.NodePool
		if j.Count == 0 {
			w.atRest(row)
		}
	}
	row.Digest = w.digestOf(row.Image)
	if k, sure := w.current(); k != nil {
		row.KeyVersion, row.KeyID = k.Version, k.ID
		if !sure {
			row.KeyID = lostKey
		}
	}
	w.brainOf(row)
	return row
}

// digestOf is what an image of the engine was resolved to when it was started last;
// empty: it was not.
func (w *witnesses) digestOf(image string) string {
	if j := w.job; j != nil && j.Image == image && j.Digest != "" {
		return j.Digest
	}
	if v := w.variable; v != nil && v.Witness != nil && v.Witness.Image == image {
		return v.Witness.Digest
	}
	return ""
}

// brainOf names the volume of the engine in a row.
func (w *witnesses) brainOf(row *registry.Engine) {
	v := w.brain()
	if v == nil {
		return
	}
	row.NodeID, row.VolumeID, row.VolumePath, row.VolumeName = v.NodeID, v.ID, v.Path, ""
	if v.Name != row.JobID() {
		row.VolumeName, row.NextVolume = v.Name, v.Name
	}
}

// brain is the volume that holds the engine's memory: the only one, or the one that
// the engine was started with last. nil: that is not known.
func (w *witnesses) brain() *cluster.Volume {
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

// atRest gives a row the state of an engine whose job asks for no process. What the
// job does not say is taken for stopped, so that nothing runs that nobody started.
func (w *witnesses) atRest(row *registry.Engine) {
	row.State, row.Desired, row.Reason, row.Restarts = registry.Stopped, registry.Stopped, "", nil
	if w.rest == string(registry.Sleeping) {
		row.State, row.Desired = registry.Sleeping, registry.Running
	}
	row.URL, row.AllocID = "", ""
}

// judgeRow says what is to be done about a row that may be older than its engine. back
// says that the registry as a whole surely is: then the operation in the row is of
// then, and what there is of the engine decides. Otherwise it is the operation's.
func (w *witnesses) judgeRow(now time.Time, back bool) ruling {
	if w.row.Op != nil && !back {
		return ruling{}
	}
	row := w.row.Clone()
	owner := w.owner()
	own := secrets.Owner{Deployment: w.deployment, ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
	begun := row.Op != nil && row.Op.Kind == registry.OpProvision && row.KeyVersion == 0
	switch {
	case row.State == registry.Destroying:
		return ruling{} // nothing leaves it; the destroy goes on
	case w.nothing() && begun:
		// Nothing was made yet, or it was destroyed since, and its id was used.
		row.State, row.Desired, row.Op.Undo = registry.Destroying, registry.Destroying, string(RegistryRecovering)
		row.Op.Kind, row.Op.Step = registry.OpDestroy, plans[registry.OpDestroy][0].name
		return ruling{act: ActCorrect, why: "nothing of it is left in Vault and Nomad: its provision is undone", row: row}
	case w.nothing():
		row.State, row.Desired, row.Reason = registry.Failed, registry.Stopped, engine.ReasonBrainMissing
		row.Op, row.Restarts, row.Frozen, row.URL, row.AllocID, row.SleepPending = nil, nil, nil, "", "", ""
		row.KeyVersion, row.KeyID = 0, ""
		if reflect.DeepEqual(row, w.row) {
			return ruling{}
		}
		return ruling{act: ActMissing, why: "nothing of it is left in Vault and Nomad: it was destroyed since", row: row}
	case owner != secrets.Owner{} && owner != own && row.ProductID == registry.WarmProduct && owner.Deployment == w.deployment:
		next := w.rebuilt(owner, now)
		next.Unlabelled = true
		return ruling{act: ActRebuild, why: "it has a user in Vault, and its row says that it waits for one", row: next}
	case owner != secrets.Owner{} && owner != own && begun:
		return ruling{} // a claim that is under way makes it its own, or gives it up
	case owner != secrets.Owner{} && owner != own:
		return ruling{act: ActQuarantine, why: whyContradiction}
	}
	// A secret that is older than the row says that Vault went back, not the row.
	if k, sure := w.current(); k != nil && k.Owner == own && (sure || k.Version > row.KeyVersion) {
		row.KeyVersion, row.KeyID = k.Version, k.ID
	}
	if v := w.brain(); v != nil && v.ID != row.VolumeID {
		_, now := registry.VolumeOf(v.Name)
		if _, then := registry.VolumeOf(row.Volume()); now >= then { // else the list is from before AdoptNode
			w.brainOf(row)
		}
	}
	if row.Digest == "" { // it was resolved since
		row.Digest = w.digestOf(row.Image)
	}
	dropped := row.Op != nil
	row.Op, row.SleepPending = nil, ""
	switch j := w.job; {
	case j == nil && dropped:
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = registry.Failed, registry.Running, cmp.Or(row.Reason, reasonInterrupted), "", ""
	case j == nil:
	case j.Count > 0 && row.Frozen == nil && (dropped || row.State == registry.Stopped || row.State == registry.Sleeping || row.State == registry.Provisioning):
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = registry.Failed, registry.Running, engine.ReasonRecovered, "", ""
	case j.Count == 0 && (w.rest != "" || dropped) && !(row.State == registry.Failed && !dropped):
		row.Frozen = nil
		w.atRest(row)
	}
	if reflect.DeepEqual(row, w.row) {
		return ruling{}
	}
	return ruling{act: ActCorrect, why: "its row was older than its secret and its job", row: row}
}
