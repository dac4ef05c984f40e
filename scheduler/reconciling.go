package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/reconcile"
)

// reconciling is what a reconcile pass does to engines.
type reconciling struct{ s *Scheduler }

func (r reconciling) Ready() bool { return r.s.Ready() == nil }

func (r reconciling) Leads() bool { return r.s.replica.Leader() }

func (r reconciling) NodeSilent(nodeID string) bool { return r.s.nodeSilent(nodeID) }

func (r reconciling) Request(ctx context.Context) context.Context {
	return operation.WithRequestID(ctx, newID())
}

func (r reconciling) Audited(ctx context.Context, e audit.Entry, change func() error) error {
	e.Actor, e.RequestID = actorSystem, operation.RequestID(ctx)
	began := time.Now() // the entry's time has no monotonic clock
	id, err := r.s.audit.Begin(ctx, e)
	if err != nil {
		return err
	}
	err = change()
	r.s.abandon(ctx, id, began, err)
	return err
}

func (r reconciling) Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error {
	return r.s.auditedUpdate(ctx, row, action, details)
}

func (r reconciling) Destroy(ctx context.Context, row *engine.Row) error {
	return r.s.proposeAndWait(ctx, row, engine.OpDestroy, audit.ActionDestroy, "nomad", "vault")
}

func (r reconciling) Requeue(engineID string) { r.s.monitor.Requeue(engineID) }

func (r reconciling) DiscardWarm(ctx context.Context, row *engine.Row, why string) {
	r.s.warm.remove(ctx, row, why)
}

func (r reconciling) VolumesOf(ctx context.Context, engineID string) ([]*cluster.Volume, error) {
	return r.s.brainsOf(ctx, engineID)
}

func (r reconciling) RemoveVolume(ctx context.Context, v *cluster.Volume) error {
	left, err := r.s.removeVolume(ctx, v)
	if err == nil && left != "" {
		err = &engine.Error{Code: engine.BackendError, Message: "the engine's volume remains: " + left}
	}
	return err
}

func (r reconciling) ProveEnded(ctx context.Context, jobID string, allocs []cluster.Alloc) error {
	return r.s.proveOrphan(ctx, jobID, allocs)
}

func (r reconciling) Image(p *engine.Product) (string, error) { return r.s.allowedImage(p, "") }

func (r reconciling) Resources(p engine.Policy) engine.Resources { return r.s.resources(p) }

// undone returns the beginning of a destroy that undoes a provision which an outdated
// registry contains and nobody continues.
func undone() engine.Operation {
	return engine.Operation{Kind: engine.OpDestroy, Step: plans.First(engine.OpDestroy), Undo: string(engine.RegistryRecovering)}
}

// EndProcess ends the process of an engine that is stopped or sleeping, by the operation
// that should have ended it, or what remains of a paused one.
func (r reconciling) EndProcess(ctx context.Context, row *engine.Row, gone bool) error {
	s := r.s
	if row.Frozen != nil {
		if !gone && !s.probe.Of(row.JobID()).KeepsAnswering(ctx, row.Frozen.URL, boot.SlowAnswer) {
			return nil // its check has not noticed yet that it was frozen
		}
		return s.settleFrozen(ctx, row)
	}
	runs, err := s.asksForProcess(ctx, row.JobID())
	if err != nil || !runs {
		return err // the list is older than the row
	}
	s.log.Warn("an engine runs although it should not; ending its process", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State))
	if row.State == engine.Sleeping {
		return s.proposeAndWait(ctx, row, engine.OpSleep, audit.ActionSleep, "nomad")
	}
	return s.proposeAndWait(ctx, row, engine.OpStop, audit.ActionStop, "nomad")
}

// asksForProcess reports whether a job requests a process now, or has one.
func (s *Scheduler) asksForProcess(ctx context.Context, jobID string) (bool, error) {
	job, err := s.cluster.Job(ctx, jobID)
	if errors.Is(err, cluster.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, group := range job.TaskGroups {
		if group.Count == nil || *group.Count > 0 {
			return true, nil
		}
	}
	w := s.cluster.Watch(jobID)
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return false, err
	}
	lives := false
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		for _, a := range state.Allocs {
			lives = lives || !a.Terminal() && !s.nodeSilent(a.NodeID)
		}
		return true, nil
	})
	return lives, err
}

// proposeAndWait begins an operation of the service itself, and waits for it.
func (s *Scheduler) proposeAndWait(ctx context.Context, row *engine.Row, kind engine.OpKind, action string, backends ...string) error {
	o, err := s.propose(ctx, row, proposal{
		kind: kind, action: action, actor: actorSystem, details: map[string]any{"why": reconcile.Why}, backends: backends,
		prepare: func(*engine.Row) error { return nil },
	})
	if err != nil {
		return reconcile.MovedOn(err)
	}
	_, err = o.Wait(ctx)
	return err
}

// PlanReconcile returns what a full pass would do now, on any replica, and changes nothing.
// Actions that a pass takes only after seeing something twice (a quota) are marked.
// BACKEND_UNAVAILABLE: the rows cannot be read.
func (s *Scheduler) PlanReconcile(ctx context.Context) (*reconcile.Plan, error) {
	return s.reconcile.Plan(ctx)
}

// RequestReconcile requests a full pass of the leader, whichever replica that is.
func (s *Scheduler) RequestReconcile(ctx context.Context) error {
	return s.store.RequestReconcile(ctx)
}

// PlanRecovery returns what a recovery of the registry would do now, and changes nothing.
// BACKEND_UNAVAILABLE: a store cannot be read.
func (s *Scheduler) PlanRecovery(ctx context.Context) ([]*reconcile.Action, error) {
	return s.reconcile.PlanRecovery(ctx)
}

// RequestRecovery requests that the leader compares every engine with its witnesses, and
// rebuilds what is missing. Changes wait meanwhile.
func (s *Scheduler) RequestRecovery(ctx context.Context) error {
	if err := s.guard.StartRecovery(ctx, "an admin requested it", true); err != nil {
		return err
	}
	return s.store.RequestReconcile(ctx)
}

// Role returns this replica's role: "leader", "follower" or "none".
func (s *Scheduler) Role() string { return s.replica.Role() }
