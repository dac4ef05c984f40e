package operation

import (
	"context"
	"slices"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
)

// Work is the data that the steps of one operation share besides the operation itself. Its
// type is defined together with the steps.
type Work any

// Step is one step of an operation. It is idempotent: after a crash the next owner repeats
// it. It stores its results in the row, which is written before the next step begins.
type Step struct {
	Name string
	Do   func(context.Context, Work) error
	// Fenced: it verifies that this replica still owns the operation (Operation.Fence).
	Fenced bool
	// FailFast: going forward, it does not wait for a store that is known to be
	// unreachable: its error undoes the operation, and its caller has already waited for
	// other steps.
	FailFast bool
	// Freezes: the operation that ends with this step leaves a frozen process.
	Freezes bool
	// Onward: from this step on, an operation that can be undone only continues, because what
	// it would go back to may be removed already.
	Onward bool
	// Foreign: a provision that is undone at this step has the identity of another owner,
	// and only removes its row.
	Foreign bool
}

// Plans contains the steps of every kind of operation. Rows contain their names: after a
// renaming, operations of the previous version cannot continue.
type Plans struct {
	// Forward contains the steps in order.
	Forward map[engine.OpKind][]Step
	// Undo contains the steps that undo an operation. Kinds without any only go forward.
	Undo map[engine.OpKind][]Step
	// Detours contains steps outside the order of their kind's plan, which lead back into
	// it or into Undo.
	Detours map[engine.OpKind][]Step
	// After maps a detour to its next step, if the detour does not choose one itself; the
	// others end their operation.
	After map[string]string
}

// First returns the first step in the plan of a kind.
func (p *Plans) First(kind engine.OpKind) string { return p.Forward[kind][0].Name }

// Last returns the last step in the plan of a kind.
func (p *Plans) Last(kind engine.OpKind) string {
	steps := p.Forward[kind]
	return steps[len(steps)-1].Name
}

// Knows reports whether this version knows the current step of an operation: a newer one
// may have begun it.
func (p *Plans) Knows(op *engine.Operation) bool {
	at := func(st Step) bool { return st.Name == op.Step }
	return slices.ContainsFunc(p.Forward[op.Kind], at) || slices.ContainsFunc(p.Undo[op.Kind], at) || slices.ContainsFunc(p.Detours[op.Kind], at)
}

// find returns the current step of an operation, and the name of the next one. known is
// false if this version does not know the step.
func (p *Plans) find(op *engine.Operation) (st Step, next string, known bool) {
	steps := p.Forward[op.Kind]
	if op.Undo != "" && p.Undo[op.Kind] != nil {
		steps = p.Undo[op.Kind]
	}
	for i, st := range steps {
		if st.Name != op.Step {
			continue
		}
		if i+1 < len(steps) {
			next = steps[i+1].Name
		}
		return st, next, true
	}
	for _, st := range p.Detours[op.Kind] {
		if st.Name == op.Step {
			return st, p.After[st.Name], true
		}
	}
	return Step{}, "", false
}

// The moments of an operation at which a test can end or pause the process. The name of a
// point consists of the operation's kind, its step, if it is in one, and the moment.
const (
	AtAudited  = "audited"  // its audit row is written, its row is not
	AtClaimed  = "claimed"  // its row is written, and nothing runs it
	AtBefore   = "before"   // a step begins
	AtFenced   = "fenced"   // a step has verified that it may still act
	AtDone     = "done"     // a step has acted, and the row is not written
	AtSaved    = "saved"    // the row is written
	AtAnswered = "answered" // it has ended, and the caller has no response
)

// Points returns the points of a kind of operation.
func (p *Plans) Points(kind engine.OpKind) (points []string) {
	add := func(name string) { points = append(points, string(kind)+"/"+name) }
	add(AtAudited)
	add(AtClaimed)
	for _, st := range slices.Concat(p.Forward[kind], p.Detours[kind], p.Undo[kind]) {
		add(st.Name + "/" + AtBefore)
		if st.Fenced {
			add(st.Name + "/" + AtFenced)
		}
		add(st.Name + "/" + AtDone)
		if kind != engine.OpDestroy || st.Name != p.Last(kind) { // after the last step of a destroy there is no row
			add(st.Name + "/" + AtSaved)
		}
	}
	add(AtAnswered)
	return points
}

// Hit reaches a point of an operation outside its steps.
func Hit(kind engine.OpKind, moment string) { fault.Hit(string(kind) + "/" + moment) }

// HitStep reaches a point in the current step of an operation.
func HitStep(op *engine.Operation, moment string) {
	fault.Hit(string(op.Kind) + "/" + op.Step + "/" + moment)
}
