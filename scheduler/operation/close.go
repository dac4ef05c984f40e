package operation

import (
	"cmp"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

// Close closes the operation in a row, at its last step.
func Close(plans *Plans, backoff engine.Backoff, row *engine.Row, now time.Time) {
	op := row.Op
	last, _, _ := plans.find(op)
	row.Op = nil
	if op.Kind == engine.OpDrill {
		return // the engine is as it was, and what it last did is not a drill
	}
	row.Last = &engine.Ended{ID: op.ID, Kind: op.Kind, BeganAt: op.BeganAt, EndedAt: now, Code: op.Undo, Message: op.Message}
	switch {
	case op.Kind == engine.OpSnapshot:
		return // the engine is as it was
	case op.Kind == engine.OpRestore:
		closeRestore(row, op)
	case op.Kind == engine.OpMove:
		closeMove(row, op)
	case op.Kind == engine.OpRestart:
		// Its process has ended, so it cannot return to its previous state.
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
	untouched := (op.Kind == engine.OpRestore || op.Kind == engine.OpMove) && op.Undo != "" && !op.Restoring.Ended
	if !last.Freezes && !untouched {
		row.Frozen = nil
	}
	if row.State != engine.Running {
		row.URL, row.AllocID = "", ""
	}
	if plans.Undo[op.Kind] != nil && op.Kind != engine.OpRotateKey && !untouched && (op.Kind != engine.OpMove || op.From == engine.Running) {
		settleRestarts(backoff, row, op, now)
	}
	if op.From == engine.Running && (row.Reason == ReasonNotMoved || row.Reason == reasonNotRestored) {
		row.Restarts = nil // the service ended its process, so it starts again without a wait
	}
}

// closeRestore writes the state of an engine after a restore. If it failed after the process
// had ended, a running engine is failed, so that it is started again with its former brain.
func closeRestore(row *engine.Row, op *engine.Operation) {
	switch {
	case op.Undo == "":
		row.State, row.Reason = engine.Running, ""
	case !op.Restoring.Ended:
		row.State = op.From // it has not been touched
	case op.From == engine.Failed && row.Reason == engine.ReasonBrainMissing:
		row.State, row.Desired = engine.Failed, engine.Stopped
	case op.From == engine.Running, op.From == engine.Failed:
		row.State, row.Desired, row.Reason = engine.Failed, engine.Running, reasonNotRestored
	default:
		row.State, row.Desired = op.From, op.From
	}
}

// closeMove writes the state of an engine after a move: the one that it had. If the move failed
// after the process had ended, the engine is failed, so that it is started again where it was.
func closeMove(row *engine.Row, op *engine.Operation) {
	if op.From == engine.Running && op.Undo != "" && op.Restoring.Ended {
		row.State, row.Reason = engine.Failed, ReasonNotMoved
	}
}

// ReasonNotMoved is the reason of an engine whose move failed after its process had been
// ended.
const ReasonNotMoved = "not_moved"

// reasonNotRestored is the reason of an engine whose restore failed after its process had
// been ended.
const reasonNotRestored = "not_restored"

func isBootOutcome(code engine.Code) bool {
	return code == engine.BootTimeout || code == engine.EngineBootFailed
}

// undo starts to undo the operation, if its kind and step allow that, and reports whether
// it did. The change is written before the next step.
func (o *Operation) undo(err error) bool {
	op, e := o.Row.Op, o.m.Owner.AsError(err)
	code := e.Code
	if op == nil || op.Undo != "" || o.m.Plans.Undo[op.Kind] == nil {
		return false
	}
	if op.Kind == engine.OpRotateKey && op.Step != o.m.Plans.First(op.Kind) {
		return false // the engine may have the new key already: the rotation can only continue
	}
	if op.Kind == engine.OpRestart && !EndsRestart(code) {
		return false
	}
	at, _, _ := o.m.Plans.find(op)
	if at.Onward {
		return false
	}
	op.Undo, op.Message, op.Reason = string(code), e.Message, o.m.Owner.ReasonOf(err)
	op.Step = o.m.Plans.Undo[op.Kind][0].Name
	if op.Kind == engine.OpProvision && !isBootOutcome(code) {
		o.becomeDestroy(at)
	}
	o.unsaved, o.undone = true, true
	return true
}

// becomeDestroy turns a provision without anything worth keeping into its own removal.
func (o *Operation) becomeDestroy(at Step) {
	o.Row.State, o.Row.Desired = engine.Destroying, engine.Destroying
	o.Row.Op.Kind, o.Row.Op.Step = engine.OpDestroy, o.m.Plans.First(engine.OpDestroy)
	o.Row.Op.Deadline = time.Now().UTC().Add(o.m.Limit(engine.OpDestroy))
	if at.Foreign {
		o.ReleaseRow()
	}
}

// ReleaseRow continues with the step that removes only the row.
func (o *Operation) ReleaseRow() {
	o.Row.VolumeID = "" // it leaves no volume behind
	o.Row.Op.Step = o.m.Plans.Last(engine.OpDestroy)
}

// reasonNotRestarted is the reason of an engine whose restart could not be carried out.
const reasonNotRestarted = "not_restarted"

// EndsRestart reports whether an error means that the engine could not be restarted; after
// any other error a restart is retried.
func EndsRestart(code engine.Code) bool {
	switch code {
	case engine.PortExhaustion, engine.CapacityExhausted, engine.StopUnconfirmed,
		engine.RegistryRecovering: // a row with an operation is not corrected
		return true
	}
	return isBootOutcome(code)
}

// settleRestarts records in the row the result of an operation that boots an engine.
func settleRestarts(b engine.Backoff, row *engine.Row, op *engine.Operation, now time.Time) {
	if row.State == engine.Running {
		row.RunningSince = now
		return
	}
	if row.State != engine.Failed || row.Desired != engine.Running {
		row.Restarts = nil
		return
	}
	attempts := 0
	if row.Restarts != nil {
		attempts = row.Restarts.Attempts
	}
	if op.Kind == engine.OpStart && op.Action == audit.ActionAutoRestartStart && (op.Canary || !isBootOutcome(engine.Code(op.Undo))) {
		attempts = max(0, attempts-1) // it shows nothing about the engine
	}
	row.Restarts = &engine.Restarts{Attempts: attempts, NextAt: now.Add(b.After(attempts))}
}
