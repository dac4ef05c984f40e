package scheduler

import (
	"context"
	"slices"

	"github.com/septemberai/orch/engine"
)

// step is one act of an operation. It is idempotent: after a crash the next
// owner does it again. What it learns it puts into the row, which is written
// before the next step begins.
type step struct {
	name string
	do   func(*operation, context.Context) error
}

// plans are the steps of every operation, in order. The names are in rows: a
// renamed step strands the operations of the version before.
var plans map[engine.OpKind][]step

// undoing are the steps that take an operation back. Kinds without any go
// forward only.
var undoing map[engine.OpKind][]step

// detours are steps outside the order of their kind's plan, which lead back into
// it or into undoing.
var detours map[engine.OpKind][]step

// after is where a detour leads that names no step itself; the others end their
// operation.
var after = map[string]string{stepAnotherPort: stepRegister}

// The steps of an engine that sleeps frozen.
const (
	stepFreeze = "freeze"
	stepThaw   = "thaw"
)

const (
	stepRegister = "register"
	// stepOwn makes a claimed warm engine's secret the user's; stepBurn gives an
	// identity up that was handed out before.
	stepOwn  = "own"
	stepBurn = "burn"
)

// knownStep says whether this version knows the step that an operation is at: a newer
// one may have begun it.
func knownStep(op *engine.Operation) bool {
	at := func(st step) bool { return st.name == op.Step }
	return slices.ContainsFunc(plans[op.Kind], at) || slices.ContainsFunc(undoing[op.Kind], at) || slices.ContainsFunc(detours[op.Kind], at)
}

// firstStep is the step that an operation begins with, by the row that is to
// carry it.
func firstStep(row *engine.Row, op *engine.Operation) string {
	switch {
	case row.Frozen == nil:
	case op.Kind == engine.OpSleep && op.From == engine.Running:
		return stepFreeze
	case op.Kind == engine.OpStart:
		return stepThaw
	}
	return plans[op.Kind][0].name
}

func init() { // not a literal: the steps refer to plans
	plans = map[engine.OpKind][]step{
		engine.OpProvision: {
			{"volume", (*operation).ensureVolume},
			{"key", (*operation).ensureKey},
			{"variable", (*operation).writeVariable},
			{stepRegister, (*operation).register},
			{"boot", (*operation).boot},
		},
		engine.OpStart: {
			{"quiesce", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"variable", (*operation).writeVariable},
			{stepRegister, (*operation).register},
			{"boot", (*operation).boot},
		},
		engine.OpStop: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
		},
		engine.OpSleep: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
		},
		engine.OpRecover: {
			{"boot", (*operation).boot},
		},
		engine.OpRestart: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"variable", (*operation).writeVariable},
			{stepRegister, (*operation).register},
			{"boot", (*operation).boot},
		},
		engine.OpRotateKey: {
			{"new-key", (*operation).writeNewKey},
			{"variable", (*operation).writeVariable},
			{"proof", (*operation).proveRotation},
			{"retire", (*operation).retireOldKey},
		},
		engine.OpDestroy: {
			{"settle", (*operation).settle},
			// Nomad forgets a purged job's allocations at once, while their
			// processes still run: the process ends first.
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"purge", (*operation).purge},
			{"volume", (*operation).deleteVolume},
			{"variable", (*operation).deleteVariable},
			{"key", (*operation).deleteKey},
			{"row", (*operation).removeRow},
		},
	}
	detours = map[engine.OpKind][]step{
		engine.OpProvision: {{"relocate", (*operation).relocate}, {stepOwn, (*operation).ownWarm}, {stepBurn, (*operation).newIdentity}, {stepAnotherPort, (*operation).anotherPort}},
		// These end their operation, or lead to the first step of its plan.
		engine.OpSleep: {{stepFreeze, (*operation).freeze}},
		engine.OpStart: {{stepThaw, (*operation).thaw}, {stepAnotherPort, (*operation).anotherPort}},
		// This one leads back to where it was.
		engine.OpRestart: {{stepAnotherPort, (*operation).anotherPort}},
	}
	undoing = map[engine.OpKind][]step{
		engine.OpProvision: {{"undo-register", (*operation).quiesce}},
		engine.OpStart:     {{"undo-register", (*operation).quiesce}},
		engine.OpRotateKey: {{"undo-new-key", (*operation).leave}},
		engine.OpRecover:   {{"undo-recover", (*operation).leave}},
		engine.OpRestart:   {{"undo-register", (*operation).quiesce}},
	}
}
