package scheduler

import (
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

// settleRestarts notes in the row how an operation that boots an engine ended.
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
		attempts = max(0, attempts-1) // it says nothing about the engine
	}
	row.Restarts = &engine.Restarts{Attempts: attempts, NextAt: now.Add(b.After(attempts))}
}
