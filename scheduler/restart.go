package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// nextRestarts is what a row says of restarts when its engine has failed: what it ran
// well for as long as the longest wait is forgotten.
func nextRestarts(b engine.Backoff, row *registry.Engine, now time.Time) *registry.Restarts {
	r := &registry.Restarts{}
	if row.Restarts != nil && now.Sub(row.RunningSince) < b.Max {
		r.Attempts = row.Restarts.Attempts
	}
	r.NextAt = now.Add(b.After(r.Attempts))
	return r
}

// restart gives a failed engine a new process and waits for how that ends.
func (m *monitor) restart(ctx context.Context, row *registry.Engine, canary bool) error {
	attempt := 1
	if row.Restarts != nil {
		attempt += row.Restarts.Attempts
	}
	o, err := m.s.propose(ctx, row, proposal{
		kind: registry.OpStart, action: audit.ActionAutoRestartStart, actor: actorSystem, canary: canary,
		details:  map[string]any{"reason": row.Reason, "attempt": attempt, "by": "orch"},
		backends: []string{"nomad", "vault"},
		prepare: func(row *registry.Engine) error {
			row.State = registry.Provisioning
			row.Restarts = &registry.Restarts{Attempts: attempt}
			return nil
		},
	})
	if err != nil {
		return err
	}
	_, err = o.wait(ctx)
	return err
}

// recover waits until a failed engine whose process is there is healthy, and
// makes it running again.
func (m *monitor) recover(ctx context.Context, row *registry.Engine, crash int64) error {
	p := proposal{
		kind: registry.OpRecover, action: audit.ActionHealthRecovered, actor: actorSystem,
		details: map[string]any{"reason": row.Reason}, backends: []string{"nomad"},
		prepare: func(row *registry.Engine) error {
			row.State, row.Crash = registry.Provisioning, crash
			return nil
		},
	}
	if row.Reason == engine.ReasonCrashed || row.Reason == engine.ReasonMemory {
		p.action, p.details["by"] = audit.ActionAutoRestartStart, "nomad"
	}
	o, err := m.s.propose(ctx, row, p)
	if err != nil {
		return err
	}
	_, err = o.wait(ctx)
	return err
}

// giveUp leaves a failed engine to a start by hand.
func (m *monitor) giveUp(ctx context.Context, row *registry.Engine) error {
	row = row.Clone()
	attempts := row.Restarts.Attempts
	row.Restarts.GaveUp = true
	return m.s.auditedUpdate(ctx, row, audit.ActionAutoRestartGaveUp, map[string]any{"reason": row.Reason, "attempts": attempts})
}

// fail says in the row that an engine does not work.
func (m *monitor) fail(ctx context.Context, at *sight, reason string, crash int64) error {
	row, now := at.row.Clone(), time.Now().UTC()
	if at.vanished && row.Vanished == nil {
		row.Vanished = &registry.Vanished{AllocID: row.AllocID, NodeID: row.NodeID, Since: now}
	}
	if at.alloc != nil {
		m.s.noteUnproven(row, []cluster.Alloc{*at.alloc})
	}
	if at := m.s.LastHealth(row); reason != engine.ReasonUnhealthy {
		row.LastHealthAt = at
	}
	row.State, row.Reason, row.Crash = registry.Failed, reason, crash
	row.URL, row.AllocID = "", ""
	row.Restarts = nextRestarts(m.s.opts.Restart, row, now)
	err := m.s.auditedUpdate(ctx, row, audit.ActionHealthFailed, map[string]any{"reason": reason})
	if err == nil {
		m.s.log.Warn("an engine failed", "engine_id", row.EngineID, "product_id", row.ProductID, "reason", reason)
	}
	return err
}

// auditedUpdate writes a row that the service itself changed, between the two
// halves of its audit row.
func (s *Scheduler) auditedUpdate(ctx context.Context, row *registry.Engine, action string, details map[string]any) error {
	began := time.Now()
	id, err := s.begin(ctx, row, action, actorSystem, details)
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, row)
	s.abandon(ctx, id, began, err)
	return err
}
