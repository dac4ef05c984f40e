package scheduler

import (
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// settleRestarts notes in the row how an operation that boots an engine ended.
func settleRestarts(b engine.Backoff, row *registry.Engine, op *registry.Op, now time.Time) {
	if row.State == registry.Running {
		row.RunningSince = now
		return
	}
	if row.State != registry.Failed || row.Desired != registry.Running {
		row.Restarts = nil
		return
	}
	attempts := 0
	if row.Restarts != nil {
		attempts = row.Restarts.Attempts
	}
	if op.Kind == registry.OpStart && op.Action == audit.ActionAutoRestartStart && (op.Canary || !isBootOutcome(Code(op.Undo))) {
		attempts = max(0, attempts-1) // it says nothing about the engine
	}
	row.Restarts = &registry.Restarts{Attempts: attempts, NextAt: now.Add(b.After(attempts))}
}
