package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
)

// removeOrphan removes an object without a row: process, job, volume, variable, key and
// tombstone, in this order, so that a crash in between leaves less of it.
func (r *Reconciler) removeOrphan(ctx context.Context, a *Action) error {
	held, err := r.d.Store.Held(ctx, a.EngineID)
	if err != nil || held {
		return err // the next pass deletes the tombstone
	}
	// What may belong to a user is read again, object by object, because a list may be old.
	if e, err := r.Evidence(ctx, a.found, nil); err != nil {
		return err
	} else if e.JudgeLost(time.Now().UTC(), false).Verdict != "" {
		return r.quarantineUnknown(ctx, &Action{EngineID: a.EngineID, found: a.found})
	}
	// The lead fences this: a replica that lost it removes nothing.
	tombstone, began := *a.orphan, time.Now()
	tombstone.Removing = began.UTC()
	if err := r.d.Store.PutOrphan(ctx, &tombstone); err != nil {
		return MovedOn(err)
	}
	err = r.d.Engines.Audited(ctx, audit.Entry{
		Timestamp: began.UTC(), EngineID: a.EngineID, Action: audit.ActionOrphanRemoved,
		Metadata: map[string]any{"what": a.found.Parts(), "first_seen": tombstone.FirstSeen},
	}, func() error {
		if err := r.Clear(ctx, a.found); err != nil {
			return err
		}
		return MovedOn(r.d.Store.DeleteOrphan(ctx, &tombstone))
	})
	if err == nil {
		r.d.Log.Warn("removed an object without a row", "engine_id", a.EngineID, "what", a.found.String(), "first_seen", tombstone.FirstSeen)
	}
	return err
}

// Clear removes everything of an engine outside the registry, its process first.
func (r *Reconciler) Clear(ctx context.Context, f *Found) error {
	if f.job != nil {
		if err := r.clearJob(ctx, f.job); err != nil {
			return fmt.Errorf("job: %w", err)
		}
	}
	for _, v := range f.volumes {
		if err := r.d.Engines.RemoveVolume(ctx, v); err != nil {
			return fmt.Errorf("volume: %w", err)
		}
	}
	if f.variable != nil {
		if err := r.d.Nomad.DeleteVariableAt(ctx, f.variable.JobID, f.variable.ModifyIndex); err != nil {
			return fmt.Errorf("variable: %w", err)
		}
	}
	if f.key {
		if err := r.d.Vault.DeleteEngine(ctx, f.id); err != nil {
			return fmt.Errorf("key: %w", err)
		}
	}
	return nil
}

// clearJob ends a job's process, waits until its node reports the end, and removes the job
// from Nomad.
func (r *Reconciler) clearJob(ctx context.Context, seen *cluster.JobInfo) error {
	job, err := r.d.Nomad.Job(ctx, seen.ID)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if *job.JobModifyIndex != seen.ModifyIndex {
		return fmt.Errorf("%w: it was registered again since it was read", cluster.ErrConflict)
	}
	if _, err := r.d.Nomad.ScaleToZero(ctx, seen.ID, jobs.Note{}, ctx.Err); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.d.KillWithin)
	defer cancel()
	w := r.d.Nomad.Watch(seen.ID)
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return err
	}
	alive := map[string]bool{} // as last read
	var allocs []cluster.Alloc
	err = w.Until(ctx, func(state cluster.JobState) (bool, error) {
		allocs = state.Allocs
		for _, a := range state.Allocs {
			alive[a.ID] = !a.Terminal()
		}
		for _, lives := range alive {
			if lives { // even if Nomad has forgotten it meanwhile
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("its process may still run: %w", err)
	}
	if err := r.d.Engines.ProveEnded(ctx, seen.ID, allocs); err != nil {
		return err
	}
	return r.d.Nomad.Purge(ctx, seen.ID)
}
