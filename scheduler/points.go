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

// A warm engine belongs to a user who has no response yet.
const pointWarmClaimed = "pool/warm-claimed"

// An engine is frozen for a copy of its brain.
const pointFrozen = "snapshot/copy/frozen"

// FaultPoints returns all points by what they interrupt: the kind of an operation, the
// audit action of an admin's change, "pool", or "epoch".
func FaultPoints() map[string][]string {
	points := map[string][]string{"pool": {pool.PointNoted, pool.PointDiscarded, pointWarmClaimed}, "epoch": {guard.PointMeant, guard.PointRaised}}
	for kind := range plans.Forward {
		points[string(kind)] = plans.Points(kind)
	}
	points[string(engine.OpSnapshot)] = append(points[string(engine.OpSnapshot)], pointFrozen)
	for _, change := range []string{audit.ActionProductRegister, audit.ActionPolicyUpdate, audit.ActionPlatformKeyRotate, audit.ActionProductDelete} {
		points[change] = []string{change + "/" + operation.AtAudited, change + "/" + atWritten}
	}
	return points
}

// FirstStep returns the first step of a kind of operation.
func FirstStep(kind engine.OpKind) string { return plans.First(kind) }

// LastStep reports whether an operation has ended after the step of a point.
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
