package reconcile

import (
	"cmp"
	"fmt"
	"reflect"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// lostKey is a key id that no secret has, for an engine whose key Vault has lost. The
// engine gets a new key like any other whose key is missing.
const lostKey = "lost"

// The reasons for the quarantine of an engine whose row and secret name different owners,
// and of one that two rows name. Such a quarantine ends by itself when that is no longer
// true.
const (
	WhyContradiction = "its row names another owner than its secret in Vault"
	WhyTwins         = "two rows name this engine_id, and at most one of them is right"
)

// ruling is what to do about an engine after the registry went back in time.
type ruling struct {
	act Act
	why string
	row *engine.Row // as it must be written
}

// judgeLost decides what to do about an engine that has no row. back: the whole registry is
// an older or a new one, and Nomad's servers may have lost their state too. Otherwise only
// a key remains of an engine.
func (w *Witnesses) judgeLost(now time.Time, back bool) ruling {
	owner := w.owner()
	productID, userID := w.named()
	switch {
	case owner != secrets.Owner{} && owner.Deployment != w.deployment:
		return ruling{} // it belongs to another deployment
	case !w.whole() && back && ofUser(owner):
		return ruling{act: ActQuarantine, why: "its secret in Vault names its owner, but Nomad knows no volume of it"}
	case !w.whole():
		return ruling{}
	case owner == secrets.Owner{}:
		return ruling{act: ActQuarantine, why: "its secret in Vault does not name its owner"}
	case owner.ProductID == engine.WarmProduct && productID == "":
		return ruling{} // a warm engine without a user, which contains nobody's memory
	case owner.ProductID == engine.WarmProduct:
		return ruling{act: ActQuarantine, why: "its secret in Vault names no user, but Nomad names one"}
	case productID != "" && (productID != owner.ProductID || userID != owner.UserID):
		return ruling{act: ActQuarantine, why: "its secret in Vault and Nomad name different users"}
	case w.Brain() == nil:
		return ruling{act: ActQuarantine, why: fmt.Sprintf("%d volumes have its name", len(w.volumes))}
	}
	return ruling{act: ActRebuild, why: "it has a user in Vault but no row", row: w.Rebuilt(owner, now)}
}

// judgeRow decides what to do about a row that may be older than its engine. back: the
// whole registry certainly is an older one; then the operation in the row is outdated, and
// the state of the engine decides. Otherwise the operation decides.
func (w *Witnesses) judgeRow(now time.Time, back bool) ruling {
	if w.row.Op != nil && !back {
		return ruling{}
	}
	row := w.row.Clone()
	owner := w.owner()
	own := secrets.Owner{Deployment: w.deployment, ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
	begun := row.Op != nil && row.Op.Kind == engine.OpProvision && row.KeyVersion == 0
	switch {
	case row.State == engine.Destroying:
		return ruling{} // this state is final, and the destroy continues
	case w.nothing() && begun:
		// Nothing was created yet, or it was destroyed since, and its id was used.
		row.State, row.Desired = engine.Destroying, engine.Destroying
		row.Op.Kind, row.Op.Step, row.Op.Undo = w.undone.Kind, w.undone.Step, w.undone.Undo
		return ruling{act: ActCorrect, why: "nothing of it exists in Vault and Nomad: its provision is undone", row: row}
	case w.nothing():
		row.State, row.Desired, row.Reason = engine.Failed, engine.Stopped, engine.ReasonBrainMissing
		row.Op, row.Restarts, row.Frozen, row.URL, row.AllocID, row.SleepPending = nil, nil, nil, "", "", ""
		row.KeyVersion, row.KeyID = 0, ""
		if reflect.DeepEqual(row, w.row) {
			return ruling{}
		}
		return ruling{act: ActMissing, why: "nothing of it exists in Vault and Nomad: it was destroyed since", row: row}
	case owner != secrets.Owner{} && owner != own && row.ProductID == engine.WarmProduct && owner.Deployment == w.deployment:
		next := w.Rebuilt(owner, now)
		next.Unlabelled = true
		return ruling{act: ActRebuild, why: "it has a user in Vault, but its row is that of a warm engine", row: next}
	case owner != secrets.Owner{} && owner != own && begun:
		return ruling{} // a claim in progress makes it the user's, or gives it up
	case owner != secrets.Owner{} && owner != own:
		return ruling{act: ActQuarantine, why: WhyContradiction}
	}
	// A secret that is older than the row shows that Vault went back, not the row.
	if k, sure := w.Current(); k != nil && k.Owner == own && (sure || k.Version > row.KeyVersion) {
		row.KeyVersion, row.KeyID = k.Version, k.ID
	}
	if v := w.Brain(); v != nil && v.ID != row.VolumeID {
		_, now := engine.VolumeOf(v.Name)
		if _, then := engine.VolumeOf(row.Volume()); now >= then { // otherwise the list is from before AdoptNode
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
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = engine.Failed, engine.Running, cmp.Or(row.Reason, reasonInterrupted), "", ""
	case j == nil:
	case j.Count > 0 && row.Frozen == nil && (dropped || row.State == engine.Stopped || row.State == engine.Sleeping || row.State == engine.Provisioning):
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = engine.Failed, engine.Running, engine.ReasonRecovered, "", ""
	case j.Count == 0 && (w.rest != "" || dropped) && !(row.State == engine.Failed && !dropped):
		row.Frozen = nil
		w.atRest(row)
	}
	if reflect.DeepEqual(row, w.row) {
		return ruling{}
	}
	return ruling{act: ActCorrect, why: "its row was older than its secret and its job", row: row}
}

// Rebuilt returns a row made only from the witnesses. Its image is empty if no witness
// names it.
func (w *Witnesses) Rebuilt(owner secrets.Owner, now time.Time) *engine.Row {
	row := &engine.Row{
		EngineID: w.id, ProductID: owner.ProductID, UserID: owner.UserID, CreatedAt: now.Truncate(time.Millisecond),
		State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonRecovered,
	}
	if w.variable != nil && w.variable.Witness != nil {
		v := w.variable.Witness
		row.Image, row.Resources, row.NodePool = v.Image, engine.Resources{CPUMHz: v.CPUMHz, MemoryMB: v.MemoryMB}, v.NodePool
		row.CreatedAt = v.CreatedAt
	}
	if j := w.job; j != nil {
		row.Image, row.Resources, row.NodePool = j.Image, engine.Resources{CPUMHz: j.CPUMHz, MemoryMB: j.MemoryMB}, j.NodePool
		if j.Count == 0 {
			w.atRest(row)
		}
	}
	row.Digest = w.digestOf(row.Image)
	if k, sure := w.Current(); k != nil {
		row.KeyVersion, row.KeyID = k.Version, k.ID
		if !sure {
			row.KeyID = lostKey
		}
	}
	w.brainOf(row)
	return row
}

// brainOf writes the volume of the engine into a row.
func (w *Witnesses) brainOf(row *engine.Row) {
	v := w.Brain()
	if v == nil {
		return
	}
	row.NodeID, row.VolumeID, row.VolumePath, row.VolumeName = v.NodeID, v.ID, v.Path, ""
	if v.Name != row.JobID() {
		row.VolumeName, row.NextVolume = v.Name, v.Name
	}
}

// atRest sets the state of an engine whose job requests no process. If the job does not
// contain it, the engine counts as stopped, so that nothing runs that nobody started.
func (w *Witnesses) atRest(row *engine.Row) {
	row.State, row.Desired, row.Reason, row.Restarts = engine.Stopped, engine.Stopped, "", nil
	if w.rest == string(engine.Sleeping) {
		row.State, row.Desired = engine.Sleeping, engine.Running
	}
	row.URL, row.AllocID = "", ""
}
