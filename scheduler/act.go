package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// whyReconcile is what the audit rows of what a pass did say.
const whyReconcile = "reconcile"

// reasonInterrupted is the reason of an engine whose provisioning nobody went on
// with.
const reasonInterrupted = "interrupted"

// act does what an action says to the incarnation that it was planned for. What
// has changed since is left to the next pass.
func (r *reconciler) act(ctx context.Context, a *Action) error {
	s := r.s
	switch a.Act {
	case ActScaleToZero:
		return s.scaleAgain(ctx, a)
	case ActFail:
		return s.failInterrupted(ctx, a.row)
	case ActDestroy:
		return s.proposeAndWait(ctx, a.row, registry.OpDestroy, audit.ActionDestroy, "nomad", "vault")
	case ActExamine:
		// No event tells that Nomad has forgotten an allocation; this drops it from
		// the view.
		w := s.cluster.Watch(a.row.JobID())
		defer w.Close()
		if err := w.Refresh(ctx); err != nil {
			return err
		}
		s.monitor.Hurry(a.EngineID)
		return nil
	case ActCorrectQuota:
		s.log.Error("a quota count did not agree with the rows; correcting it", "product_id", a.ProductID, "counted", a.quota.quota.Count, "rows", a.quota.rows)
		return movedOn(s.store.CorrectQuota(ctx, a.ProductID, a.quota.quota, a.quota.rows))
	case ActMark:
		s.log.Warn("found something without a row; it is removed when it stays so", "engine_id", a.EngineID, "what", a.found.String(), "after", s.opts.OrphanGrace.String())
		mark := &registry.Orphan{EngineID: a.EngineID, FirstSeen: time.Now().UTC()}
		if a.orphan != nil {
			mark.Index = a.orphan.Index
		}
		return movedOn(s.store.PutOrphan(ctx, mark))
	case ActUnmark:
		return movedOn(s.store.DeleteOrphan(ctx, a.orphan))
	case ActRemove:
		return s.removeOrphan(ctx, a)
	case ActRebuild:
		if a.damaged != nil {
			return s.rebuildDamaged(ctx, a)
		}
		return s.confirmLost(ctx, a.EngineID)
	case ActRestoreProduct:
		return s.restoreDamaged(ctx, a)
	case ActForget:
		return s.forgetDamaged(ctx, a)
	case ActMend:
		s.log.Warn("an index of the registry does not lead to its row; setting it right", "index", a.fault.Index, "why", a.Why)
		return movedOn(s.store.Mend(ctx, a.fault))
	case ActDropPooled:
		// What outside the registry was read before the pool, and an entry goes before
		// anything of the engine is made.
		defer s.reconcile.nudge()
		return s.guard.startRecovery(ctx, "engine "+a.EngineID+" was handed out, and its volume is pooled in Consul", false)
	case ActQuarantine:
		if a.row != nil {
			return s.quarantineTwins(ctx, a.row)
		}
		return s.quarantineUnknown(ctx, a)
	case ActRelease:
		return s.release(ctx, a.quarantined)
	}
	return fmt.Errorf("scheduler: reconcile does not know how to %s", a.Act)
}

// movedOn takes a conflict for what it is: somebody else acted since the pass
// looked, and the next one sees what is to be done.
func movedOn(err error) error {
	if errors.Is(err, registry.ErrConflict) || errors.Is(err, cluster.ErrConflict) {
		return nil
	}
	return err
}

// scaleAgain ends the process of an engine that is stopped or sleeping, by the
// operation that should have done so, or what is left of a paused one.
func (s *Scheduler) scaleAgain(ctx context.Context, a *Action) error {
	row := a.row
	if row.Frozen != nil {
		if processless(a.found.job) == "" && !s.probe.KeepsAnswering(ctx, row.Frozen.URL, boot.SlowAnswer) {
			return nil // its check has not noticed yet that it was frozen
		}
		return s.settleFrozen(ctx, row)
	}
	runs, err := s.asksForProcess(ctx, row.JobID())
	if err != nil || !runs {
		return err // the list that told otherwise is older than the row
	}
	s.log.Warn("an engine that should not run does; ending its process", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State))
	if row.State == registry.Sleeping {
		return s.proposeAndWait(ctx, row, registry.OpSleep, audit.ActionSleep, "nomad")
	}
	return s.proposeAndWait(ctx, row, registry.OpStop, audit.ActionStop, "nomad")
}

// asksForProcess says whether a job asks for a process now, or has one.
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

// proposeAndWait begins an operation that nobody asked for, and waits for it.
func (s *Scheduler) proposeAndWait(ctx context.Context, row *registry.Engine, kind registry.OpKind, action string, backends ...string) error {
	o, err := s.propose(ctx, row, proposal{
		kind: kind, action: action, actor: actorSystem, details: map[string]any{"why": whyReconcile}, backends: backends,
		prepare: func(*registry.Engine) error { return nil },
	})
	if err != nil {
		return movedOn(err)
	}
	_, err = o.wait(ctx)
	return err
}

// failInterrupted ends a provisioning without an operation: its brain and key
// stay, and a start tries again.
func (s *Scheduler) failInterrupted(ctx context.Context, row *registry.Engine) error {
	row, began := row.Clone(), time.Now()
	row.State, row.Reason, row.URL, row.AllocID = registry.Failed, reasonInterrupted, "", ""
	id, err := s.begin(ctx, row, audit.ActionHealthFailed, actorSystem, map[string]any{"why": whyReconcile, "reason": reasonInterrupted})
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, row)
	s.abandon(ctx, id, began, err)
	return movedOn(err)
}

// confirmLost has the registry rebuilt when an engine that was seen without a row
// surely has a user and none: the lists may be older than its destroy.
func (s *Scheduler) confirmLost(ctx context.Context, engineID string) error {
	lost, err := s.isLost(ctx, engineID)
	if err != nil || !lost {
		return err
	}
	defer s.reconcile.nudge()
	return s.guard.startRecovery(ctx, "engine "+engineID+" has a user in Vault and no row in Consul", false)
}

// quarantineUnknown leaves to an admin what was seen without a row and may hold
// somebody's memory, if it is still so.
func (s *Scheduler) quarantineUnknown(ctx context.Context, a *Action) error {
	held, err := s.store.Held(ctx, a.EngineID)
	if err != nil || held {
		return err
	}
	w, err := s.witnessesOf(ctx, a.found, nil)
	if err != nil {
		return err
	}
	r := w.judgeLost(time.Now().UTC(), false)
	if r.act != ActQuarantine {
		return nil // it is gone, or the next pass knows whose it is
	}
	s.log.Error("an engine is quarantined until an admin decides (orch engine adopt, orch engine discard)", "engine_id", a.EngineID, "what", a.found.String(), "why", r.why)
	q := &registry.Quarantined{EngineID: a.EngineID, Since: time.Now().UTC(), Why: r.why, What: a.found.parts()}
	if len(w.volumes) > 0 {
		q.NodeID = w.volumes[0].NodeID
	}
	q.ProductID, q.UserID = w.user()
	return s.quarantine(ctx, q)
}

// removeOrphan removes what has no row: process, job, volume, variable, key and
// tombstone, in this order, so that a crash between any two leaves less of it.
func (s *Scheduler) removeOrphan(ctx context.Context, a *Action) error {
	held, err := s.store.Held(ctx, a.EngineID)
	if err != nil || held {
		return err // the next pass takes the tombstone away
	}
	// What may be somebody's is looked at once more, not only in a list.
	if w, err := s.witnessesOf(ctx, a.found, nil); err != nil {
		return err
	} else if r := w.judgeLost(time.Now().UTC(), false); r.act != "" {
		return s.quarantineUnknown(ctx, &Action{EngineID: a.EngineID, found: a.found})
	}
	// Fenced by the lead: whoever lost it removes nothing.
	tombstone, began := *a.orphan, time.Now()
	tombstone.Removing = began.UTC()
	if err := s.store.PutOrphan(ctx, &tombstone); err != nil {
		return movedOn(err)
	}
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), EngineID: a.EngineID, Action: audit.ActionOrphanRemoved, Actor: actorSystem, RequestID: RequestID(ctx),
		Metadata: map[string]any{"what": a.found.parts(), "first_seen": tombstone.FirstSeen},
	})
	if err != nil {
		return err
	}
	err = s.clearOrphan(ctx, a.found)
	if err == nil {
		err = movedOn(s.store.DeleteOrphan(ctx, &tombstone))
	}
	s.abandon(ctx, id, began, err)
	if err == nil {
		s.log.Warn("removed what had no row", "engine_id", a.EngineID, "what", a.found.String(), "first_seen", tombstone.FirstSeen)
	}
	return err
}

func (s *Scheduler) clearOrphan(ctx context.Context, f *found) error {
	if f.job != nil {
		if err := s.clearJob(ctx, f.job); err != nil {
			return fmt.Errorf("job: %w", err)
		}
	}
	for _, v := range f.volumes {
		left, err := s.removeVolume(ctx, v)
		if err == nil && left != "" {
			err = &Error{Code: BackendError, Message: "the engine's volume is left: " + left}
		}
		if err != nil {
			return fmt.Errorf("volume: %w", err)
		}
	}
	if f.variable != nil {
		if err := s.cluster.DeleteVariableAt(ctx, f.variable.JobID, f.variable.ModifyIndex); err != nil {
			return fmt.Errorf("variable: %w", err)
		}
	}
	if f.key {
		if err := s.vault.DeleteEngine(ctx, f.id); err != nil {
			return fmt.Errorf("key: %w", err)
		}
	}
	return nil
}

// clearJob ends a job's process, waits until its node says that it is gone, and
// has Nomad forget the job.
func (s *Scheduler) clearJob(ctx context.Context, seen *cluster.JobInfo) error {
	job, err := s.cluster.Job(ctx, seen.ID)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if *job.JobModifyIndex != seen.ModifyIndex {
		return fmt.Errorf("%w: it was registered anew since it was seen", cluster.ErrConflict)
	}
	if _, err := s.cluster.ScaleToZero(ctx, seen.ID, "", "", ctx.Err); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killGrace+killMargin)
	defer cancel()
	w := s.cluster.Watch(seen.ID)
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return err
	}
	alive := map[string]bool{} // as it was seen last
	var allocs []cluster.Alloc
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		for _, a := range state.Allocs {
			alive[a.ID] = !a.Terminal()
		}
		for _, lives := range alive {
			if lives { // also one that Nomad has forgotten meanwhile
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("its process is not known to be gone: %w", err)
	}
	if err := s.proveOrphan(ctx, seen.ID, allocs); err != nil {
		return err
	}
	return s.cluster.Purge(ctx, seen.ID)
}
