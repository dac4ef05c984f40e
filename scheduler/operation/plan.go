package operation

import (
	"context"
	"slices"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
)

// Work is what the steps of one operation share besides the operation itself; it is of
// whoever declares the steps.
type Work any

// Step is one act of an operation. It is idempotent: after a crash the next
// owner does it again. What it learns it puts into the row, which is written
// before the next step begins.
type Step struct {
	Name string
	Do   func(context.Context, Work) error
	// Fenced: it verifies that it may still act (Operation.Fence).
	Fenced bool
	// FailFast: going forward, it waits for no store that is known to be away: its error
	// takes the operation back, and its caller has waited for other steps already.
	FailFast bool
	// Freezes: the operation that ends with it leaves a frozen process.
	Freezes bool
	// Foreign: a provision that is undone at it has an identity that is somebody else's,
	// and removes its row alone.
	Foreign bool
}

// Plans are the steps of every kind of operation. The names are in rows: a renamed step
// strands the operations of the version before.
type Plans struct {
	// Forward are the steps in order.
	Forward map[engine.OpKind][]Step
	// Undo are the steps that take an operation back. Kinds without any go forward only.
	Undo map[engine.OpKind][]Step
	// Detours are steps outside the order of their kind's plan, which lead back into it
	// or into Undo.
	Detours map[engine.OpKind][]Step
	// After is where a detour leads that names no step itself; the others end their
	// operation.
	After map[string]string
}

// First is the step that the plan of a kind begins with.
func (p *Plans) First(kind engine.OpKind) string { return p.Forward[kind][0].Name }

// Last is the step that the plan of a kind ends with.
func (p *Plans) Last(kind engine.OpKind) string {
	steps := p.Forward[kind]
	return steps[len(steps)-1].Name
}

// Knows says whether this version knows the step that an operation is at: a newer
// one may have begun it.
func (p *Plans) Knows(op *engine.Operation) bool {
	at := func(st Step) bool { return st.Name == op.Step }
	return slices.ContainsFunc(p.Forward[op.Kind], at) || slices.ContainsFunc(p.Undo[op.Kind], at) || slices.ContainsFunc(p.Detours[op.Kind], at)
}

// find is the step that an operation is at, and the name of the one after it; no step:
// this version does not know it.
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

// The moments of an operation at which a test can end or pause the process. A
// point is named after the operation's kind, its step if it is in one, and the
// moment.
const (
	AtAudited  = "audited"  // its audit row is begun, its row is not written
	AtClaimed  = "claimed"  // its row is written, nothing works on it
	AtBefore   = "before"   // a step begins
	AtFenced   = "fenced"   // a step has verified that it may still act
	AtDone     = "done"     // a step has acted, the row does not say so
	AtSaved    = "saved"    // the row says so
	AtAnswered = "answered" // it is over, nobody was told
)

// Points are the points of a kind of operation.
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
		if kind != engine.OpDestroy || st.Name != p.Last(kind) { // after that there is no row
			add(st.Name + "/" + AtSaved)
		}
	}
	add(AtAnswered)
	return points
}

// Hit is a point of an operation outside its steps.
func Hit(kind engine.OpKind, moment string) { fault.Hit(string(kind) + "/" + moment) }

// HitStep is a point of the step that an operation is at.
func HitStep(op *engine.Operation, moment string) {
	fault.Hit(string(op.Kind) + "/" + op.Step + "/" + moment)
}
