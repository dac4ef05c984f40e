package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// plans are the steps of every operation. Rows contain their names: after a renaming,
// operations of the previous version cannot continue.
var plans operation.Plans

// The steps of an engine that sleeps frozen.
const (
	stepFreeze = "freeze"
	stepThaw   = "thaw"
)

const (
	stepRegister = "register"
	// stepRelocate gives a provision that its node could not place another node.
	stepRelocate = "relocate"
	// stepOwn changes the owner in the secret of a claimed warm engine to the user;
	// stepBurn abandons an identity that was handed out before.
	stepOwn  = "own"
	stepBurn = "burn"
)

// firstStep returns the first step of an operation for a row.
func firstStep(row *engine.Row, op *engine.Operation) string {
	switch {
	case row.Frozen == nil:
	case op.Kind == engine.OpSleep && op.From == engine.Running:
		return stepFreeze
	case op.Kind == engine.OpStart:
		return stepThaw
	}
	return plans.First(op.Kind)
}

// do converts a method of work to a step's function.
func do(act func(*work, context.Context) error) func(context.Context, operation.Work) error {
	return func(ctx context.Context, w operation.Work) error { return act(w.(*work), ctx) }
}

func init() { // not a literal, because the steps refer to plans
	plans.After = map[string]string{stepAnotherPort: stepRegister, stepForkTake: stepForkVolume, stepForkVolume: stepFetch, stepFetch: stepClean, stepClean: stepForkReady, stepForkReady: "key"}
	plans.Forward = map[engine.OpKind][]operation.Step{
		engine.OpProvision: {
			{Name: "volume", Do: do((*work).ensureVolume), Fenced: true},
			{Name: "key", Do: do((*work).ensureKey), FailFast: true},
			{Name: "variable", Do: do((*work).writeVariable), Fenced: true, FailFast: true},
			{Name: stepRegister, Do: do((*work).register), Fenced: true},
			{Name: "boot", Do: do((*work).boot)},
		},
		engine.OpStart: {
			{Name: "quiesce", Do: do((*work).quiesce), Fenced: true},
			{Name: "drain", Do: do((*work).awaitGone)},
			{Name: "variable", Do: do((*work).writeVariable), Fenced: true, FailFast: true},
			{Name: stepRegister, Do: do((*work).register), Fenced: true},
			{Name: "boot", Do: do((*work).boot)},
		},
		engine.OpStop: {
			{Name: "scale-down", Do: do((*work).quiesce), Fenced: true},
			{Name: "drain", Do: do((*work).awaitGone)},
		},
		engine.OpSleep: {
			{Name: "scale-down", Do: do((*work).quiesce), Fenced: true},
			{Name: "drain", Do: do((*work).awaitGone)},
		},
		engine.OpRecover: {
			{Name: "boot", Do: do((*work).boot)},
		},
		engine.OpRestart: {
			{Name: "scale-down", Do: do((*work).quiesce), Fenced: true},
			{Name: "drain", Do: do((*work).awaitGone)},
			{Name: "variable", Do: do((*work).writeVariable), Fenced: true},
			{Name: stepRegister, Do: do((*work).register), Fenced: true},
			{Name: "boot", Do: do((*work).boot)},
		},
		engine.OpRotateKey: {
			{Name: "new-key", Do: do((*work).writeNewKey), Fenced: true},
			{Name: "variable", Do: do((*work).writeVariable), Fenced: true},
			{Name: "proof", Do: do((*work).proveRotation)},
			{Name: "retire", Do: do((*work).retireOldKey)},
		},
		engine.OpDestroy: {
			{Name: "settle", Do: do((*work).settle)},
			// Nomad forgets a purged job's allocations at once, while their processes still
			// run, so the process is ended first.
			{Name: "scale-down", Do: do((*work).quiesce), Fenced: true},
			{Name: "drain", Do: do((*work).awaitGone)},
			{Name: "purge", Do: do((*work).purge)},
			{Name: "erase", Do: do((*work).erase)},
			{Name: "volume", Do: do((*work).deleteVolume)},
			{Name: "variable", Do: do((*work).deleteVariable)},
			{Name: "key", Do: do((*work).deleteKey)},
			{Name: "row", Do: do((*work).removeRow)},
		},
		engine.OpSnapshot: {
			{Name: "upload", Do: do((*work).beginUpload)},
			{Name: stepTakeWorker, Do: do((*work).prepareCopy), Fenced: true},
			{Name: "copy", Do: do((*work).copyBrain), Fenced: true},
			{Name: "send", Do: do((*work).awaitSent)},
			{Name: "store", Do: do((*work).storeSnapshot), Fenced: true},
			{Name: stepClean, Do: do((*work).removeWorker)},
		},
		// The brain is complete in its new volume before the engine is stopped, and the former
		// one is deleted when the engine runs.
		engine.OpRestore: {
			{Name: "target", Do: do((*work).nameTarget)},
			{Name: "target-volume", Do: do((*work).ensureTarget), Fenced: true},
			{Name: stepFetch, Do: do((*work).fetch), Fenced: true},
			{Name: stepClean, Do: do((*work).removeWorker)},
			{Name: "target-ready", Do: do((*work).awaitTarget)},
			{Name: "scale-down", Do: do((*work).endProcess), Fenced: true},
			{Name: "drain", Do: do((*work).drainFormer)},
			{Name: stepKeep, Do: do((*work).beginKeep)},
			{Name: "keep-worker", Do: do((*work).prepareCopy), Fenced: true},
			{Name: "keep-send", Do: do((*work).awaitSent)},
			{Name: "keep-store", Do: do((*work).storeSnapshot), Fenced: true},
			{Name: stepSwitchKey, Do: do((*work).switchKey), Fenced: true},
			{Name: "switch", Do: do((*work).switchBrain)},
			{Name: "variable", Do: do((*work).writeVariable), Fenced: true},
			{Name: stepRegister, Do: do((*work).register), Fenced: true},
			{Name: "boot", Do: do((*work).boot)},
			{Name: "release", Do: do((*work).release), Fenced: true, Onward: true},
		},
	}
	plans.Forward[engine.OpMove] = []operation.Step{
		{Name: "target", Do: do((*work).nameAway)},
		{Name: "target-volume", Do: do((*work).ensureTarget), Fenced: true},
		{Name: "turn", Do: do((*work).awaitReader)},
		{Name: stepKeep, Do: do((*work).beginPass)},
		{Name: "target-ready", Do: do((*work).awaitTarget)},
		{Name: "scale-down", Do: do((*work).endForMove), Fenced: true},
		{Name: "drain", Do: do((*work).awaitGone)},
		{Name: "keep-worker", Do: do((*work).copyToPass), Fenced: true},
		{Name: "keep-send", Do: do((*work).awaitSent)},
		{Name: "keep-store", Do: do((*work).storeSnapshot), Fenced: true},
		{Name: "pass", Do: do((*work).pass)},
		{Name: stepFetch, Do: do((*work).fetch), Fenced: true},
		{Name: stepClean, Do: do((*work).removeWorker)},
		{Name: "switch", Do: do((*work).switchPlace)},
		{Name: "variable", Do: do((*work).writeVariable), Fenced: true},
		{Name: stepRegister, Do: do((*work).registerMoved), Fenced: true},
		{Name: "boot", Do: do((*work).bootMoved)},
		{Name: "release", Do: do((*work).release), Fenced: true, Onward: true},
	}
	plans.Forward[engine.OpDrill] = []operation.Step{
		{Name: "target", Do: do((*work).placeDrill)},
		{Name: "target-volume", Do: do((*work).ensureTarget), Fenced: true},
		{Name: stepFetch, Do: do((*work).drill), Fenced: true},
		{Name: stepClean, Do: do((*work).removeWorker)},
		{Name: "remove", Do: do((*work).dropDrill), Fenced: true},
	}
	plans.Detours = map[engine.OpKind][]operation.Step{
		engine.OpProvision: {{Name: stepRelocate, Do: do((*work).relocate)}, {Name: stepOwn, Do: do((*work).ownWarm), FailFast: true}, {Name: stepBurn, Do: do((*work).newIdentity), Foreign: true}, {Name: stepAnotherPort, Do: do((*work).anotherPort), Fenced: true}, {Name: stepForkTake, Do: do((*work).takeForFork)}, {Name: stepForkVolume, Do: do((*work).forkVolume), Fenced: true}, {Name: stepFetch, Do: do((*work).fetch), Fenced: true}, {Name: stepClean, Do: do((*work).removeWorker)}, {Name: stepForkReady, Do: do((*work).awaitForkVolume)}},
		// These finish their operation, or lead to the first step of its plan.
		engine.OpSleep: {{Name: stepFreeze, Do: do((*work).freeze), Fenced: true, Freezes: true}},
		engine.OpStart: {{Name: stepThaw, Do: do((*work).thaw), Fenced: true}, {Name: stepAnotherPort, Do: do((*work).anotherPort), Fenced: true}},
		// This one leads back to the step before it.
		engine.OpRestart: {{Name: stepAnotherPort, Do: do((*work).anotherPort), Fenced: true}},
		engine.OpRestore: {{Name: stepAnotherPort, Do: do((*work).anotherPort), Fenced: true}},
		engine.OpMove:    {{Name: stepAnotherPort, Do: do((*work).anotherPort), Fenced: true}},
	}
	plans.Undo = map[engine.OpKind][]operation.Step{
		engine.OpDrill: {
			{Name: "undo-worker", Do: do((*work).removeWorker)},
			{Name: "undo-remove", Do: do((*work).dropDrill), Fenced: true},
		},
		engine.OpProvision: {{Name: "undo-register", Do: do((*work).quiesce), Fenced: true}},
		engine.OpStart:     {{Name: "undo-register", Do: do((*work).quiesce), Fenced: true}},
		engine.OpRotateKey: {{Name: "undo-new-key", Do: do((*work).leave)}},
		engine.OpRecover:   {{Name: "undo-recover", Do: do((*work).leave)}},
		engine.OpRestart:   {{Name: "undo-register", Do: do((*work).quiesce), Fenced: true}},
		// First of all, nothing may stay frozen.
		engine.OpSnapshot: {
			{Name: "undo-copy", Do: do((*work).thawCopied)},
			{Name: "undo-worker", Do: do((*work).removeWorker)},
			{Name: "undo-upload", Do: do((*work).dropUpload)},
		},
		engine.OpRestore: {
			{Name: "undo-register", Do: do((*work).unregister), Fenced: true},
			{Name: "undo-switch", Do: do((*work).switchBack)},
			{Name: "undo-variable", Do: do((*work).rewriteVariable), Fenced: true},
			// Its turn on the node ends, whatever becomes of the volume.
			{Name: "undo-worker", Do: do((*work).removeWorker)},
			{Name: "undo-target", Do: do((*work).dropTarget), Fenced: true},
		},
		engine.OpMove: {
			{Name: "undo-register", Do: do((*work).unregister), Fenced: true},
			{Name: "undo-switch", Do: do((*work).switchBack)},
			{Name: "undo-variable", Do: do((*work).rewriteVariable), Fenced: true},
			{Name: "undo-rest", Do: do((*work).restAgain), Fenced: true},
			{Name: "undo-worker", Do: do((*work).removeWorker)},
			{Name: "undo-target", Do: do((*work).dropTarget), Fenced: true},
		},
	}
}
