package scheduler

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// attempt runs the steps from the row's on, writing the row after each. A
// session that is lost is no error for a while: once there is one again the row
// says whose the operation is.
func (o *operation) attempt(ctx context.Context) error {
	var lost time.Time // when the session was first missed
	for {
		err := o.advance(ctx)
		if !errors.Is(err, registry.ErrNoSession) {
			lost = time.Time{}
		} else if lost.IsZero() {
			lost = time.Now()
		}
		switch {
		case errors.Is(err, errReread) && ctx.Err() == nil:
			o.unsaved, o.undone = false, o.row.Op.Undo != "" // what is stored decides
		case !lost.IsZero() && time.Since(lost) < sessionGrace && pause.For(ctx, firstRetry):
		case moved(err) && o.row.Op != nil && time.Now().Before(o.row.Op.Deadline) && pause.For(ctx, firstRetry):
			// Often it was this operation's own write, whose answer was lost: what
			// was read is read again, and nobody is told "busy" of an operation
			// that goes on.
		case err != nil:
			return err
		case o.removed || o.row.Op == nil && !o.unsaved:
			return nil
		}
	}
}

// moved says whether an error is a lost check-and-set in Nomad or Vault.
func moved(err error) bool {
	return errors.Is(err, cluster.ErrConflict) || errors.Is(err, secrets.ErrConflict)
}

// advance runs the row's step and writes the row, if it carries an operation.
func (o *operation) advance(ctx context.Context) error {
	if o.unsaved {
		if err := o.write(ctx); err != nil {
			return err
		}
	}
	if o.row.Op == nil {
		return nil
	}
	kind, st, next, err := o.find()
	if err != nil {
		return err
	}
	hitStep(kind, st.name, atBefore)
	began := time.Now()
	if o.failsFast(st.name) {
		err = st.do(o, link.FailFast(ctx))
	} else {
		err = st.do(o, ctx)
	}
	o.timings.since(st.name, began)
	switch {
	case errors.Is(err, errDetour):
		o.unsaved = true
		return nil
	case errors.Is(err, errRelocated):
		hitStep(kind, st.name, atSaved)
		return nil
	case err != nil:
		return err
	}
	hitStep(kind, st.name, atDone)
	switch {
	case o.removed:
		return nil
	case next == "":
		o.finish()
	default:
		o.row.Op.Step = next
	}
	o.unsaved = true
	if err := o.write(ctx); err != nil {
		return err
	}
	hitStep(kind, st.name, atSaved)
	return nil
}

// failsFast says whether a step waits for no store that is known to be away: its error
// takes the operation back, and its caller has waited for other steps already.
func (o *operation) failsFast(step string) bool {
	if op := o.row.Op; op.Undo != "" || op.Kind != engine.OpProvision && op.Kind != engine.OpStart {
		return false
	}
	return step == "key" || step == stepOwn || step == "variable"
}

// find is the step that the row is at, and the name of the one after it.
func (o *operation) find() (kind engine.OpKind, st step, next string, err error) {
	kind = o.row.Op.Kind
	steps := plans[kind]
	if o.row.Op.Undo != "" && undoing[kind] != nil {
		steps = undoing[kind]
	}
	for i, st := range steps {
		if st.name != o.row.Op.Step {
			continue
		}
		if i+1 < len(steps) {
			next = steps[i+1].name
		}
		return kind, st, next, nil
	}
	for _, st := range detours[kind] {
		if st.name == o.row.Op.Step {
			return kind, st, after[st.name], nil
		}
	}
	return kind, step{}, "", engine.Errorf(engine.Internal, "the operation stopped at a step that this version does not know")
}

// write saves a row that was advanced.
func (o *operation) write(ctx context.Context) error {
	began := time.Now()
	err := o.save(ctx)
	o.writing += time.Since(began)
	if err != nil {
		return err
	}
	o.unsaved = false
	return nil
}

// finish closes the operation in the row.
func (o *operation) finish() {
	op, row := o.row.Op, o.row
	row.Op = nil
	row.Last = &engine.Ended{ID: op.ID, Kind: op.Kind, BeganAt: op.BeganAt, EndedAt: time.Now().UTC(), Code: op.Undo, Message: op.Message}
	switch {
	case op.Kind == engine.OpRestart:
		// Its process ended: there is no way back to where it was.
		row.State, row.Reason, row.RestartedFor = engine.Running, "", op.EnvVersion
		if op.Undo != "" {
			row.State, row.Reason = engine.Failed, cmp.Or(op.Reason, reasonNotRestarted)
		}
	case op.Undo != "" && isBootOutcome(engine.Code(op.Undo)):
		row.State, row.Reason = engine.Failed, op.Reason
	case op.Undo != "":
		row.State = op.From
		if op.From != engine.Failed {
			row.Desired = op.From
		}
	case op.Kind == engine.OpStop:
		row.State, row.Reason = engine.Stopped, ""
	case op.Kind == engine.OpSleep:
		row.State, row.Reason = engine.Sleeping, ""
	case op.Kind == engine.OpProvision || op.Kind == engine.OpStart || op.Kind == engine.OpRecover:
		row.State, row.Reason = engine.Running, ""
	}
	if op.Step != stepFreeze {
		row.Frozen = nil
	}
	if row.State != engine.Running {
		row.URL, row.AllocID = "", ""
	}
	if undoing[op.Kind] != nil && op.Kind != engine.OpRotateKey {
		settleRestarts(o.s.opts.Restart, row, op, time.Now().UTC())
	}
}

func isBootOutcome(code engine.Code) bool {
	return code == engine.BootTimeout || code == engine.EngineBootFailed
}

// undo turns the operation round where its kind and step allow it, and says
// whether it did. The change is written before the next step.
func (o *operation) undo(err error) bool {
	op, e := o.row.Op, AsError(err)
	code := e.Code
	if op == nil || op.Undo != "" || undoing[op.Kind] == nil {
		return false
	}
	if op.Kind == engine.OpRotateKey && op.Step != plans[op.Kind][0].name {
		return false // the engine may have the new key already: only forward
	}
	if op.Kind == engine.OpRestart && !endsRestart(code) {
		return false
	}
	from := op.Step
	op.Undo, op.Message, op.Reason = string(code), e.Message, reasonOf(err)
	op.Step = undoing[op.Kind][0].name
	if op.Kind == engine.OpProvision && !isBootOutcome(code) {
		o.becomeDestroy(from)
	}
	o.unsaved, o.undone = true, true
	return true
}

// becomeDestroy makes a provision that left nothing worth keeping remove
// itself.
func (o *operation) becomeDestroy(from string) {
	o.row.State, o.row.Desired = engine.Destroying, engine.Destroying
	o.row.Op.Kind, o.row.Op.Step = engine.OpDestroy, plans[engine.OpDestroy][0].name
	o.row.Op.Deadline = time.Now().UTC().Add(o.s.limit(engine.OpDestroy))
	if from == stepBurn {
		o.releaseRow()
	}
}

// errReread: the row is still this operation's, but another one than it knew. It
// goes on from what is stored.
var errReread = errors.New("scheduler: the row was read again")
