package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// staleMirror is the maximum age of the rows in memory for a check of all engines.
const staleMirror = 20 * time.Second

// healing is what the monitor does to engines.
type healing struct{ s *Scheduler }

func (h healing) Informed() bool { return h.s.informed() }

func (h healing) NodeSilent(nodeID string) bool { return h.s.nodeSilent(nodeID) }

func (h healing) BrainKnown(ctx context.Context, row *engine.Row) (bool, error) {
	return h.s.brainKnown(ctx, row)
}

func (h healing) NoteUnproven(row *engine.Row, alloc cluster.Alloc) {
	h.s.noteUnproven(row, []cluster.Alloc{alloc})
}

// GoOn leaves an engine alone that has an operation by now: a snapshot may have frozen it.
func (h healing) GoOn(ctx context.Context, row *engine.Row) {
	if now, err := h.s.store.Engine(ctx, row.ProductID, row.UserID); err == nil && now.Op != nil {
		return
	}
	h.s.goOn(ctx, row)
}

func (h healing) SettleFrozen(ctx context.Context, row *engine.Row) error {
	return h.s.settleFrozen(ctx, row)
}

func (h healing) Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error {
	return h.s.auditedUpdate(ctx, row, action, details)
}

func (h healing) Begin(ctx context.Context, action string, details map[string]any) (int64, error) {
	return h.s.audit.Begin(ctx, audit.Entry{Timestamp: time.Now().UTC(), Action: action, Actor: actorSystem, Metadata: details})
}

func (h healing) Complete(ctx context.Context, auditID int64, took time.Duration) {
	h.s.complete(ctx, auditID, audit.Completion{Duration: took})
}

func (h healing) Overtaken(err error) bool { return overtaken(err) }

// informed reports whether this replica leads and may act on its view, because the view is
// current and the registry complete.
func (s *Scheduler) informed() bool {
	return s.Ready() == nil && s.guard.OK() && s.replica.Leader() && s.cluster.Live() && s.mirror.Age() < staleMirror
}

// Restart gives a failed engine a new process, and waits for the result.
func (h healing) Restart(ctx context.Context, row *engine.Row, canary bool) error {
	attempt := 1
	if row.Restarts != nil {
		attempt += row.Restarts.Attempts
	}
	o, err := h.s.propose(ctx, row, proposal{
		kind: engine.OpStart, action: audit.ActionAutoRestartStart, actor: actorSystem, canary: canary,
		details:  map[string]any{"reason": row.Reason, "attempt": attempt, "by": "orch"},
		backends: []string{"nomad", "vault"},
		prepare: func(row *engine.Row) error {
			row.State = engine.Provisioning
			row.Restarts = &engine.Restarts{Attempts: attempt}
			return nil
		},
	})
	if err != nil {
		return err
	}
	_, err = o.Wait(ctx)
	return err
}

// Recover waits until a failed engine that has a process is healthy, and sets it to
// running.
func (h healing) Recover(ctx context.Context, row *engine.Row, crash int64) error {
	p := proposal{
		kind: engine.OpRecover, action: audit.ActionHealthRecovered, actor: actorSystem,
		details: map[string]any{"reason": row.Reason}, backends: []string{"nomad"},
		prepare: func(row *engine.Row) error {
			row.State, row.Crash = engine.Provisioning, crash
			return nil
		},
	}
	if row.Reason == engine.ReasonCrashed || row.Reason == engine.ReasonMemory {
		p.action, p.details["by"] = audit.ActionAutoRestartStart, "nomad"
	}
	o, err := h.s.propose(ctx, row, p)
	if err != nil {
		return err
	}
	_, err = o.Wait(ctx)
	return err
}

// auditedUpdate writes a row that the service itself changed, between beginning and
// completing its audit row.
func (s *Scheduler) auditedUpdate(ctx context.Context, row *engine.Row, action string, details map[string]any) error {
	began := time.Now()
	id, err := s.begin(ctx, row, action, actorSystem, details)
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, row)
	s.abandon(ctx, id, began, err)
	return err
}

// LastHealth returns when the service last knew that an engine was healthy.
func (s *Scheduler) LastHealth(e *engine.Row) time.Time { return s.monitor.LastHealth(e) }
