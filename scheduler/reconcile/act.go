package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// Why is the reason in the audit rows of what a pass did.
const Why = "reconcile"

// act carries out an action, if its object has not changed since the plan. Otherwise the
// next pass handles it.
func (r *Reconciler) act(ctx context.Context, a *Action) error {
	switch a.Act {
	case ActScaleToZero:
		return r.d.Engines.EndProcess(ctx, a.row, processless(a.found.job) != "")
	case ActFail:
		return r.failInterrupted(ctx, a.row)
	case ActDestroy:
		return r.d.Engines.Destroy(ctx, a.row)
	case ActExamine:
		// There is no event when Nomad removes an allocation; this removes it from the
		// view.
		w := r.d.Nomad.Watch(a.row.JobID())
		defer w.Close()
		if err := w.Refresh(ctx); err != nil {
			return err
		}
		r.d.Engines.Requeue(a.EngineID)
		return nil
	case ActCorrectQuota:
		r.d.Log.Error("a quota count differs from the rows; correcting it", "product_id", a.ProductID, "counted", a.quota.quota.Count, "rows", a.quota.rows)
		return MovedOn(r.d.Store.CorrectQuota(ctx, a.ProductID, a.quota.quota, a.quota.rows))
	case ActMark:
		r.d.Log.Warn("found an object without a row; it will be removed if it still has none", "engine_id", a.EngineID, "what", a.found.String(), "after", r.d.Grace.String())
		mark := &registry.Orphan{EngineID: a.EngineID, FirstSeen: time.Now().UTC()}
		if a.orphan != nil {
			mark.Index = a.orphan.Index
		}
		return MovedOn(r.d.Store.PutOrphan(ctx, mark))
	case ActUnmark:
		return MovedOn(r.d.Store.DeleteOrphan(ctx, a.orphan))
	case ActRemove:
		return r.removeOrphan(ctx, a)
	case ActRebuild:
		if a.damaged != nil {
			return r.rebuildDamaged(ctx, a)
		}
		return r.confirmLost(ctx, a.EngineID)
	case ActRestoreProduct:
		return r.restoreDamaged(ctx, a)
	case ActForget:
		return r.forgetDamaged(ctx, a)
	case ActMend:
		r.d.Log.Warn("an index of the registry does not lead to its row; correcting it", "index", a.fault.Index, "why", a.Why)
		return MovedOn(r.d.Store.Mend(ctx, a.fault))
	case ActDropPooled:
		// Everything outside the registry was read before the pool, and a pool entry is
		// deleted before anything of the engine is created.
		defer r.Trigger()
		return r.d.Guard.StartRecovery(ctx, "engine "+a.EngineID+" was handed out, but its volume is pooled in Consul", false)
	case ActQuarantine:
		if a.row != nil {
			return r.d.Owners.QuarantineTwins(ctx, a.row)
		}
		return r.quarantineUnknown(ctx, a)
	case ActRelease:
		return r.d.Owners.Release(ctx, a.quarantined)
	}
	return fmt.Errorf("reconcile: unknown action %s", a.Act)
}

// MovedOn returns nil for a conflict, which means that another call acted since the pass
// read the object; the next pass plans again.
func MovedOn(err error) error {
	if errors.Is(err, registry.ErrConflict) || errors.Is(err, cluster.ErrConflict) {
		return nil
	}
	return err
}

// failInterrupted ends a provision without an operation: its brain and key stay, and a
// start can retry.
func (r *Reconciler) failInterrupted(ctx context.Context, row *engine.Row) error {
	row = row.Clone()
	row.State, row.Reason, row.URL, row.AllocID = engine.Failed, engine.ReasonInterrupted, "", ""
	return MovedOn(r.d.Engines.Update(ctx, row, audit.ActionHealthFailed, map[string]any{"why": Why, "reason": engine.ReasonInterrupted}))
}

// Lost reports whether an engine has a user according to its secret, but is not in the
// registry. The registry is read first, because a destroy deletes the secret before the
// row.
func (r *Reconciler) Lost(ctx context.Context, engineID string) (bool, error) {
	held, err := r.d.Store.Held(ctx, engineID)
	if err != nil || held {
		return false, err
	}
	key, err := r.d.Vault.NewestKey(ctx, engineID)
	if errors.Is(err, secrets.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if key.Owner.EngineID != engineID || key.Owner.Deployment != r.d.Guard.ID() || !witness.OfUser(key.Owner) {
		return false, nil
	}
	// The index by engine_id may be missing, and a row that cannot be read counts, too.
	row, err := r.d.Store.Engine(ctx, key.Owner.ProductID, key.Owner.UserID)
	var damaged *registry.Unreadable
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return true, nil
	case errors.As(err, &damaged):
		return false, nil
	}
	return err == nil && row.EngineID != engineID, err
}

// confirmLost starts a recovery of the registry if an engine that seemed to have no row
// certainly has a user and none. The lists may be older than its destroy.
func (r *Reconciler) confirmLost(ctx context.Context, engineID string) error {
	lost, err := r.Lost(ctx, engineID)
	if err != nil || !lost {
		return err
	}
	defer r.Trigger()
	return r.d.Guard.StartRecovery(ctx, "engine "+engineID+" has a user in Vault but no row in Consul", false)
}

// quarantineUnknown quarantines an object that has no row and may contain a user's memory,
// if that is still true.
func (r *Reconciler) quarantineUnknown(ctx context.Context, a *Action) error {
	held, err := r.d.Store.Held(ctx, a.EngineID)
	if err != nil || held {
		return err
	}
	e, err := r.Evidence(ctx, a.found, nil)
	if err != nil {
		return err
	}
	ruled := e.JudgeLost(time.Now().UTC(), false)
	if ruled.Verdict != witness.Quarantine {
		return nil // it was removed, or the next pass knows its owner
	}
	r.d.Log.Error("an engine is quarantined until an admin decides (orch engine adopt, orch engine discard)", "engine_id", a.EngineID, "what", a.found.String(), "why", ruled.Why)
	q := &registry.Quarantined{EngineID: a.EngineID, Since: time.Now().UTC(), Why: ruled.Why, What: a.found.Parts(), NodeID: e.NodeID()}
	q.ProductID, q.UserID = e.User()
	return r.d.Owners.Quarantine(ctx, q)
}
