package witness

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

// lostKey is a key id that no secret has, for an engine whose key Vault has lost. The
// engine gets a new key like any other whose key is missing.
const lostKey = "lost"

// WhyContradiction is the reason for the quarantine of an engine whose row and secret name
// different owners. The quarantine ends by itself when they name the same one again.
const WhyContradiction = "its row names another owner than its secret in Vault"

// Verdict says what to do about an engine. The zero value means: nothing.
type Verdict string

// The verdicts.
const (
	// Rebuild: write the row of an engine that has a user but no row.
	Rebuild Verdict = "rebuild"
	// Correct: write a row that is older than its engine.
	Correct Verdict = "correct"
	// Missing: mark the row of an engine that no longer exists.
	Missing Verdict = "brain_missing"
	// Quarantine: only an admin can decide who owns the engine.
	Quarantine Verdict = "quarantine"
)

// Ruling is what to do about an engine after the registry went back in time, and why.
type Ruling struct {
	Verdict Verdict
	Why     string
	Row     *engine.Row // as it must be written: for Rebuild, Correct and Missing
}

// JudgeLost decides what to do about an engine that has no row. back: the whole registry is
// an older or a new one, and Nomad's servers may have lost their state too. Otherwise only
// a key remains of an engine.
func (e *Evidence) JudgeLost(now time.Time, back bool) Ruling {
	owner := e.Owner()
	productID, userID := e.named()
	switch {
	case owner != secrets.Owner{} && owner.Deployment != e.deployment:
		return Ruling{} // it belongs to another deployment
	case !e.whole() && back && OfUser(owner):
		return Ruling{Verdict: Quarantine, Why: "its secret in Vault names its owner, but Nomad knows no volume of it"}
	case !e.whole():
		return Ruling{}
	case owner == secrets.Owner{}:
		return Ruling{Verdict: Quarantine, Why: "its secret in Vault does not name its owner"}
	case owner.ProductID == engine.WarmProduct && productID == "":
		return Ruling{} // a warm engine without a user, which contains nobody's memory
	case owner.ProductID == engine.WarmProduct:
		return Ruling{Verdict: Quarantine, Why: "its secret in Vault names no user, but Nomad names one"}
	case productID != "" && (productID != owner.ProductID || userID != owner.UserID):
		return Ruling{Verdict: Quarantine, Why: "its secret in Vault and Nomad name different users"}
	case e.Brain() == nil && len(e.volumes) == 1:
		return Ruling{Verdict: Quarantine, Why: "its only volume was made for the brain in a snapshot, and perhaps has only a part of it"}
	case e.Brain() == nil:
		return Ruling{Verdict: Quarantine, Why: fmt.Sprintf("%d volumes have its name", len(e.volumes))}
	}
	return Ruling{Verdict: Rebuild, Why: "it has a user in Vault but no row", Row: e.Rebuilt(owner, now)}
}

// JudgeRow decides what to do about a row that may be older than its engine. back: the
// whole registry certainly is an older one; then the operation in the row is outdated, and
// the state of the engine decides. Otherwise the operation decides.
func (e *Evidence) JudgeRow(now time.Time, back bool) Ruling {
	if e.row.Op != nil && !back {
		return Ruling{}
	}
	row := e.row.Clone()
	owner := e.Owner()
	own := secrets.Owner{Deployment: e.deployment, ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
	begun := row.Op != nil && row.Op.Kind == engine.OpProvision && row.KeyVersion == 0
	switch {
	case row.State == engine.Destroying:
		return Ruling{} // this state is final, and the destroy continues
	case e.Nothing() && begun:
		// Nothing was created yet, or it was destroyed since, and its id was used.
		row.State, row.Desired = engine.Destroying, engine.Destroying
		row.Op.Kind, row.Op.Step, row.Op.Undo = e.undone.Kind, e.undone.Step, e.undone.Undo
		return Ruling{Verdict: Correct, Why: "nothing of it exists in Vault and Nomad: its provision is undone", Row: row}
	case e.Nothing():
		row.State, row.Desired, row.Reason = engine.Failed, engine.Stopped, engine.ReasonBrainMissing
		row.Op, row.Restarts, row.Frozen, row.URL, row.AllocID, row.SleepPending = nil, nil, nil, "", "", ""
		row.KeyVersion, row.KeyID = 0, ""
		if reflect.DeepEqual(row, e.row) {
			return Ruling{}
		}
		return Ruling{Verdict: Missing, Why: "nothing of it exists in Vault and Nomad: it was destroyed since", Row: row}
	case owner != secrets.Owner{} && owner != own && row.ProductID == engine.WarmProduct && owner.Deployment == e.deployment:
		next := e.Rebuilt(owner, now)
		next.Unlabelled = true
		return Ruling{Verdict: Rebuild, Why: "it has a user in Vault, but its row is that of a warm engine", Row: next}
	case owner != secrets.Owner{} && owner != own && begun:
		return Ruling{} // a claim in progress makes it the user's, or gives it up
	case owner != secrets.Owner{} && owner != own:
		return Ruling{Verdict: Quarantine, Why: WhyContradiction}
	}
	// A secret that is older than the row shows that Vault went back, not the row.
	if k, sure := e.Current(); k != nil && k.Owner == own && (sure || k.Version > row.KeyVersion) {
		row.KeyVersion, row.KeyID = k.Version, k.ID
	}
	dropped := row.Op != nil
	between := dropped && row.Op.Restoring != nil && row.Op.Restoring.Former != nil // two volumes, of which one is the brain
	if between {
		row.Discard(*row.Op.Restoring.Former, now)
	}
	if v := e.Brain(); v != nil && v.ID != row.VolumeID {
		now, _ := engine.ParseVolume(v.Name)
		if then, _ := engine.ParseVolume(row.Volume()); now.Number >= then.Number || e.startedWith(v.ID) && row.HasLeft(v.ID) { // otherwise the list is from before AdoptNode
			e.brainOf(row)
		}
	}
	if between {
		row.Discard(row.Op.Restoring.Target, now)
	}
	if row.Digest == "" { // it was resolved since
		row.Digest = e.digestOf(row.Image)
	}
	if e.job != nil {
		row.TLS = e.job.TLS
	}
	row.Op, row.SleepPending = nil, ""
	switch j := e.job; {
	case j == nil && dropped:
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = engine.Failed, engine.Running, cmp.Or(row.Reason, engine.ReasonInterrupted), "", ""
	case j == nil:
	case j.Count > 0 && row.Frozen == nil && (dropped || row.State == engine.Stopped || row.State == engine.Sleeping || row.State == engine.Provisioning):
		row.State, row.Desired, row.Reason, row.URL, row.AllocID = engine.Failed, engine.Running, engine.ReasonRecovered, "", ""
	case j.Count == 0 && (e.rest != "" || dropped) && !(row.State == engine.Failed && !dropped):
		row.Frozen = nil
		e.atRest(row)
	}
	if row.Reason == engine.ReasonBrainMissing && row.VolumeID == "" {
		row.Desired = engine.Stopped // an import that was dropped, which an admin repeats
	}
	if reflect.DeepEqual(row, e.row) {
		return Ruling{}
	}
	return Ruling{Verdict: Correct, Why: "its row was older than its secret and its job", Row: row}
}

// Rebuilt returns a row made only from the witnesses. Its image is empty if no witness
// names it.
func (e *Evidence) Rebuilt(owner secrets.Owner, now time.Time) *engine.Row {
	row := &engine.Row{
		EngineID: e.id, ProductID: owner.ProductID, UserID: owner.UserID, CreatedAt: now.Truncate(time.Millisecond),
		State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonRecovered,
	}
	if e.variable != nil && e.variable.Witness != nil {
		v := e.variable.Witness
		row.Image, row.Resources, row.NodePool = v.Image, engine.Resources{CPUMHz: v.CPUMHz, MemoryMB: v.MemoryMB, Isolation: v.Isolation}, v.NodePool
		row.CreatedAt = v.CreatedAt
	}
	if j := e.job; j != nil {
		row.Image, row.Resources, row.NodePool = j.Image, engine.Resources{CPUMHz: j.CPUMHz, MemoryMB: j.MemoryMB, Isolation: j.Isolation}, j.NodePool
		row.TLS = j.TLS
		if j.Count == 0 {
			e.atRest(row)
		}
	}
	row.Digest = e.digestOf(row.Image)
	if k, sure := e.Current(); k != nil {
		row.KeyVersion, row.KeyID = k.Version, k.ID
		if !sure {
			row.KeyID = lostKey
		}
	}
	e.brainOf(row)
	return row
}

// brainOf writes the volume of the engine into a row.
func (e *Evidence) brainOf(row *engine.Row) {
	v := e.Brain()
	if v == nil {
		return
	}
	row.NodeID, row.VolumeID, row.VolumePath, row.VolumeName = v.NodeID, v.ID, v.Path, ""
	if v.Name != row.JobID() {
		row.VolumeName, row.NextVolume = v.Name, v.Name
	}
	row.Discarded = slices.DeleteFunc(row.Discarded, func(d engine.Discarded) bool { return d.VolumeID == v.ID })
}

// atRest sets the state of an engine whose job requests no process. If the job does not
// contain it, the engine counts as stopped, so that nothing runs that nobody started.
func (e *Evidence) atRest(row *engine.Row) {
	row.State, row.Desired, row.Reason, row.Restarts = engine.Stopped, engine.Stopped, "", nil
	if e.rest == string(engine.Sleeping) {
		row.State, row.Desired = engine.Sleeping, engine.Running
	}
	row.URL, row.AllocID = "", ""
}
