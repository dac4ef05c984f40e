package scheduler

import (
	"slices"
	"strings"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/scheduler/guard"
	"github.com/septemberai/orch/scheduler/pool"
)

// The moments of an operation at which a test can end or pause the process. A
// point is named after the operation's kind, its step if it is in one, and the
// moment.
const (
	atAudited  = "audited"  // its audit row is begun, its row is not written
	atClaimed  = "claimed"  // its row is written, nothing works on it
	atBefore   = "before"   // a step begins
	atFenced   = "fenced"   // a step has verified that it may still act
	atDone     = "done"     // a step has acted, the row does not say so
	atSaved    = "saved"    // the row says so
	atAnswered = "answered" // it is over, nobody was told
	atWritten  = "written"  // a change of a product is made, its audit row is open
)

// A warm engine is a user's, who was not told.
const pointWarmClaimed = "pool/warm-claimed"

// fencedSteps are those that verify that they may still act; a destroy's rest is
// done to what nobody else will ever use.
var fencedSteps = []string{"volume", "variable", "register", "quiesce", "scale-down", "undo-register", "new-key", stepFreeze, stepThaw, stepAnotherPort}

func isFenced(kind engine.OpKind, step string) bool {
	return slices.Contains(fencedSteps, step) && (kind != engine.OpDestroy || step == "scale-down")
}

// FaultPoints are all points by what they interrupt: the kind of an operation,
// the audit log's name of an admin's change, "pool", or "epoch".
func FaultPoints() map[string][]string {
	points := map[string][]string{"pool": {pool.PointNoted, pool.PointDiscarded, pointWarmClaimed}, "epoch": {guard.PointMeant, guard.PointRaised}}
	for kind, forward := range plans {
		add := func(names ...string) {
			for _, name := range names {
				points[string(kind)] = append(points[string(kind)], string(kind)+"/"+name)
			}
		}
		add(atAudited, atClaimed)
		for _, st := range slices.Concat(forward, detours[kind], undoing[kind]) {
			add(st.name + "/" + atBefore)
			if isFenced(kind, st.name) {
				add(st.name + "/" + atFenced)
			}
			add(st.name + "/" + atDone)
			if kind != engine.OpDestroy || st.name != "row" { // after that there is none
				add(st.name + "/" + atSaved)
			}
		}
		add(atAnswered)
	}
	for _, change := range []string{audit.ActionProductRegister, audit.ActionPolicyUpdate, audit.ActionPlatformKeyRotate, audit.ActionProductDelete} {
		points[change] = []string{change + "/" + atAudited, change + "/" + atWritten}
	}
	return points
}

// hit is a point of an operation outside its steps.
func hit(kind engine.OpKind, moment string) { fault.Hit(string(kind) + "/" + moment) }

// hitStep is a point of one of its steps.
func hitStep(kind engine.OpKind, step, moment string) {
	fault.Hit(string(kind) + "/" + step + "/" + moment)
}

// FirstStep is the step that a kind of operation begins with.
func FirstStep(kind engine.OpKind) string { return plans[kind][0].name }

// LastStep says whether a point is at a step after which its operation is over.
func LastStep(point string) bool {
	parts := strings.Split(point, "/")
	if len(parts) != 3 {
		return false
	}
	if parts[1] == stepFreeze || parts[1] == stepThaw {
		return true
	}
	kind := engine.OpKind(parts[0])
	for _, steps := range [][]step{plans[kind], undoing[kind]} {
		if len(steps) > 0 && steps[len(steps)-1].name == parts[1] {
			return true
		}
	}
	return false
}
