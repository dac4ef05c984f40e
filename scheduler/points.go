package scheduler

import (
	"strings"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/guard"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/pool"
)

// A change of a product is made, and its audit row is open. It is also a point between
// its audit row and the change (operation.AtAudited).
const atWritten = "written"

// A warm engine is a user's, who was not told.
const pointWarmClaimed = "pool/warm-claimed"

// FaultPoints are all points by what they interrupt: the kind of an operation,
// the audit log's name of an admin's change, "pool", or "epoch".
func FaultPoints() map[string][]string {
	points := map[string][]string{"pool": {pool.PointNoted, pool.PointDiscarded, pointWarmClaimed}, "epoch": {guard.PointMeant, guard.PointRaised}}
	for kind := range plans.Forward {
		points[string(kind)] = plans.Points(kind)
	}
	for _, change := range []string{audit.ActionProductRegister, audit.ActionPolicyUpdate, audit.ActionPlatformKeyRotate, audit.ActionProductDelete} {
		points[change] = []string{change + "/" + operation.AtAudited, change + "/" + atWritten}
	}
	return points
}

// FirstStep is the step that a kind of operation begins with.
func FirstStep(kind engine.OpKind) string { return plans.First(kind) }

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
	for _, steps := range [][]operation.Step{plans.Forward[kind], plans.Undo[kind]} {
		if len(steps) > 0 && steps[len(steps)-1].Name == parts[1] {
			return true
		}
	}
	return false
}
