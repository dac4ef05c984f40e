package health

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

// nextRestarts returns the restarts for the row of an engine that has failed: they begin
// anew if it ran well for as long as the longest wait.
func nextRestarts(b engine.Backoff, row *engine.Row, now time.Time) *engine.Restarts {
	r := &engine.Restarts{}
	if row.Restarts != nil && now.Sub(row.RunningSince) < b.Max {
		r.Attempts = row.Restarts.Attempts
	}
	r.NextAt = now.Add(b.After(r.Attempts))
	return r
}

// giveUp leaves a failed engine to a manual start.
func (m *Monitor) giveUp(ctx context.Context, row *engine.Row) error {
	row = row.Clone()
	attempts := row.Restarts.Attempts
	row.Restarts.GaveUp = true
	return m.d.Engines.Update(ctx, row, audit.ActionAutoRestartGaveUp, map[string]any{"reason": row.Reason, "attempts": attempts})
}

// fail sets an engine to failed in its row.
func (m *Monitor) fail(ctx context.Context, at *observation, reason string, crash int64) error {
	row, now := at.row.Clone(), time.Now().UTC()
	if at.vanished && row.Vanished == nil {
		row.Vanished = &engine.Vanished{AllocID: row.AllocID, NodeID: row.NodeID, Since: now}
	}
	if at.alloc != nil {
		m.d.Engines.NoteUnproven(row, *at.alloc)
	}
	if at := m.LastHealth(row); reason != engine.ReasonUnhealthy {
		row.LastHealthAt = at
	}
	row.State, row.Reason, row.Crash = engine.Failed, reason, crash
	row.URL, row.AllocID = "", ""
	row.Restarts = nextRestarts(m.d.Backoff, row, now)
	err := m.d.Engines.Update(ctx, row, audit.ActionHealthFailed, map[string]any{"reason": reason})
	if err == nil {
		m.d.Log.Warn("an engine failed", "engine_id", row.EngineID, "product_id", row.ProductID, "reason", reason)
	}
	return err
}
