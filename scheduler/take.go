package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler/operation"
)

// The steps that take a snapshot. A restore takes one of the brain that it replaces, by the
// same steps under other names.
const (
	stepTakeWorker = "worker"
	stepKeep       = "keep-upload"
)

const (
	// partBytes is the size of an upload's parts, of which the worker has two in memory, and
	// largePartBytes that for a brain that needs more of them than an order can name: the
	// memory in nomad-jobs/brain.nomad.hcl is enough for two.
	partBytes, largePartBytes = 16 << 20, 64 << 20
	// fewParts and mostParts limit the number of URLs in an order (docs/snapshots.md), and
	// firstParts is their number as long as the size of the brain is not known: one that needs
	// more is copied and sent twice.
	fewParts, firstParts, mostParts = 64, 160, 700
	// completeWithinStore limits how long a store may take to make an object of its parts.
	completeWithinStore = 10 * time.Minute
	// storeTries is how long a store that is away is tried when a snapshot only has to be
	// completed in it.
	storeTries = 5 * time.Minute
)

// taken returns the name of the snapshot that the operation makes.
func (o *work) taken() store.Snapshot {
	return store.Snapshot{EngineID: o.Row.EngineID, SnapshotID: o.Row.Op.Taking.SnapshotID}
}

// beginUpload begins the upload of a snapshot.
func (o *work) beginUpload(ctx context.Context) error {
	t, op := o.Row.Op.Taking, o.Row.Op
	key, err := o.ensureBrainKey(ctx)
	if err != nil {
		return err
	}
	t.Recipient = key.Recipient
	if t.Parts == 0 {
		t.Parts, t.PartBytes = partsFor(o.Row.Snapshot), partBytes
	}
	if t.UploadID == "" {
		if t.UploadID, err = o.s.opts.Snapshots.Store.Begin(ctx, o.taken()); err != nil {
			return err
		}
	}
	op.Worker = o.Row.NodeID
	op.Attempt++
	return nil
}

// partsFor returns how many parts an upload may have, by the size of the last one.
func partsFor(last *engine.SnapshotRef) int {
	if last == nil || last.StoredBytes == 0 {
		return firstParts
	}
	return min(mostParts, max(fewParts, int(2*last.StoredBytes/partBytes)))
}

// prepareCopy starts the worker, and waits until it would copy at once. The engine is not
// frozen meanwhile.
func (o *work) prepareCopy(ctx context.Context) error {
	t := o.Row.Op.Taking
	claims, err := o.workerClaims(ctx, o.Row.NodeID)
	if err == nil && claims {
		err = o.letRead(ctx)
	}
	if err != nil {
		return err
	}
	if err := o.WhileOwned(ctx, o.awaitTurn); err != nil {
		return err
	}
	urls, err := o.s.opts.Snapshots.Store.PartURLs(ctx, o.taken(), t.UploadID, t.Parts, urlsValid)
	if err != nil {
		return err
	}
	order := &brain.Order{Snapshot: &brain.SnapshotOrder{Recipient: t.Recipient, Parts: urls, PartBytes: t.PartBytes}}
	if t.AllocID != "" {
		token, err := o.copyToken(ctx)
		if err != nil {
			return err
		}
		order.Snapshot.Listen, order.Snapshot.Token = jobs.WorkerCopy, token
		order.Snapshot.WaitS = int64(copyAsked.Seconds())
	}
	t.At = time.Now().UTC()
	if err := o.startWorker(ctx, order, o.Row.Place(), !claims); err != nil {
		return err
	}
	if t.AllocID == "" {
		return nil
	}
	return o.WhileOwned(ctx, func(ctx context.Context) error {
		return o.watchWorker(ctx, o.Row.NodeID, func(ctx context.Context, state *cluster.WorkerState) (bool, error) {
			if state.Ended {
				return true, nil // awaitResult says why
			}
			return state.Running && state.Addr != "" && listens(ctx, state.Addr), nil
		})
	})
}

// awaitSent waits until the worker has sent the snapshot.
func (o *work) awaitSent(ctx context.Context) error {
	op := o.Row.Op
	t := op.Taking
	if t.Result != nil {
		return nil
	}
	result, err := o.awaitResult(ctx, o.Row.NodeID)
	switch kind := brain.KindOf(err); {
	case err == nil:
	case kind == brain.TooLarge && (t.Parts < mostParts || t.PartBytes < largePartBytes):
		if t.Parts < mostParts {
			t.Parts = mostParts
		} else {
			t.PartBytes = largePartBytes
		}
		return o.takeAgain(ctx, "the snapshot needs a larger upload")
	case o.replacesUnread(err):
		return o.replaceUnread(ctx, err)
	default:
		return uploadRemoved(err)
	}
	if another, err := o.anotherProcess(ctx, result); err != nil {
		return err
	} else if another {
		return engine.Errorf(engine.SnapshotFailed, "the engine's process was restarted during the copy; retry")
	}
	if result.Changed > 0 {
		o.Log.Warn("another process than the engine's first one wrote to the brain while it was copied, so the snapshot is not of one moment: stop the engine for its snapshots", "changed", result.Changed)
	}
	result.SkippedNames = nil // names of the user's files do not belong into the registry
	t.Result = result
	return nil
}

// anotherProcess reports whether the process that was frozen for a copy was replaced before
// the copy ended: Nomad starts one that somebody kills again. All times are by the node's
// clock. The node has reported that before the end of the worker, which runs there, too.
func (o *work) anotherProcess(ctx context.Context, r *brain.Result) (bool, error) {
	t := o.Row.Op.Taking
	if t.AllocID == "" {
		return false, nil
	}
	now, err := o.s.cluster.ReadNewest(ctx, o.Row.JobID())
	for errors.Is(err, cluster.ErrUnavailable) && time.Now().Before(o.Row.Op.Deadline) && pause.For(ctx, lastLook) {
		now, err = o.s.cluster.ReadNewest(ctx, o.Row.JobID())
	}
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		return false, nil // somebody has purged its job
	case err != nil:
		return false, err
	case now.ID != t.AllocID:
		return true, nil
	}
	return startedWhileFrozen(time.Unix(0, now.Started), r, time.Duration(t.FrozenMS)*time.Millisecond), nil
}

// startedWhileFrozen reports whether a process was started between the freeze and the end of
// the copy. frozen is for how long the engine was frozen, copy included; 0: unknown.
func startedWhileFrozen(started time.Time, r *brain.Result, frozen time.Duration) bool {
	began := r.CopyEnded.Add(-frozen)
	if r.CopyBegan.Before(began) {
		began = r.CopyBegan
	}
	return started.After(began) && started.Before(r.CopyEnded)
}

// takeAgain begins the upload anew, with another worker.
func (o *work) takeAgain(ctx context.Context, why string) error {
	o.Log.Info("taking the snapshot again", "why", why)
	op := o.Row.Op
	if err := o.removeWorker(ctx); err != nil {
		return err
	}
	if err := o.s.opts.Snapshots.Store.Abort(ctx, o.taken(), op.Taking.UploadID); err != nil {
		return err
	}
	op.Taking.UploadID, op.Step = "", plans.First(engine.OpSnapshot)
	if op.Kind == engine.OpRestore || op.Kind == engine.OpMove {
		op.Step = stepKeep
	}
	return operation.ErrDetour
}

// storeSnapshot makes the object of its parts, and writes its manifest: now the snapshot
// exists.
func (o *work) storeSnapshot(ctx context.Context) error {
	t, row := o.Row.Op.Taking, o.Row
	r := t.Result
	m := &brain.Manifest{
		Format: brain.Format, SnapshotID: t.SnapshotID, EngineID: row.EngineID, ProductID: row.ProductID, UserID: row.UserID,
		EngineVersion: row.Image, Image: row.Image, Trigger: t.Trigger, Label: t.Label, Recipient: t.Recipient,
		CreatedAt: t.At, StoredAt: time.Now().UTC(), FrozenMS: t.FrozenMS, Content: r.Content,
	}
	if d := o.s.Pinned(row); d != "" {
		m.Image += "@" + d
	}
	until := time.Now().Add(storeTries)
	for wait := firstLook; ; wait = min(2*wait, 10*time.Second) {
		err := o.completeSnapshot(ctx, m)
		if err == nil {
			break
		}
		if brain.KindOf(err) != brain.Away || time.Now().After(until) {
			return err
		}
		o.Log.Warn("the snapshot store cannot be reached; retrying", "error", err)
		if !pause.For(ctx, wait) {
			return ctx.Err()
		}
	}
	row.Snapshot = &engine.SnapshotRef{ID: m.SnapshotID, At: m.CreatedAt, SHA256: m.SHA256, StoredBytes: m.StoredBytes}
	return nil
}

func (o *work) completeSnapshot(ctx context.Context, m *brain.Manifest) error {
	if err := o.Fence(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, completeWithinStore)
	defer cancel()
	t, at := o.Row.Op.Taking, o.s.opts.Snapshots.Store
	if err := at.Complete(limited, o.taken(), t.UploadID, t.Result.Parts, t.Result.StoredBytes); err != nil {
		return uploadRemoved(err)
	}
	if err := at.PutManifest(limited, m); err != nil {
		return err
	}
	return o.unlessLate(ctx, func(ctx context.Context, now *engine.Row) error {
		if now != nil && now.State != engine.Destroying {
			return nil // another replica has stored the same snapshot, or undoes it
		}
		return at.Delete(ctx, o.taken())
	})
}

// dropUpload removes what an undone snapshot has stored. A store that is away keeps it: an
// upload is aborted later (sweepUploads), and an object without a manifest is no snapshot, and
// is removed when the engine is destroyed.
func (o *work) dropUpload(ctx context.Context) error {
	t := o.Row.Op.Taking
	if t == nil || t.UploadID == "" || o.Row.Snapshot != nil && o.Row.Snapshot.ID == t.SnapshotID {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	at := o.s.opts.Snapshots.Store
	err := at.Abort(limited, o.taken(), t.UploadID)
	if err == nil && t.Result != nil {
		err = at.Delete(limited, o.taken())
	}
	if err != nil && ctx.Err() == nil {
		o.Log.Warn("cannot remove what a failed snapshot has stored", "snapshot_id", t.SnapshotID, "error", err)
	}
	return ctx.Err()
}
