package scheduler

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// scheduleEvery is the interval at which the leader looks for snapshots that are due.
	scheduleEvery = 5 * time.Second
	// sweepUploadsEvery is the interval at which the leader aborts uploads that nobody
	// completes, and uploadsKept how old they are then: longer than an operation takes.
	sweepUploadsEvery, uploadsKept = time.Hour, 24 * time.Hour
	// firstSnapshotRetry is the wait after the first failed snapshot of an engine; it doubles
	// with each further one, up to the interval.
	firstSnapshotRetry = time.Minute
	// jitterPart is the part of the interval over which snapshots that would be due together
	// are spread.
	jitterPart = 10
)

// snapshotRule is what a product's policy says about snapshots.
type snapshotRule struct {
	every time.Duration
	keep  int
}

// snapshotSchedule takes the snapshots that policies ask for, on the leader.
type snapshotSchedule struct {
	s *Scheduler

	mu     sync.Mutex
	failed map[string]failedSnapshots // by engine_id
}

// failedSnapshots are the failed attempts of an engine since its last snapshot.
type failedSnapshots struct {
	count int
	next  time.Time
}

func newSnapshotSchedule(s *Scheduler) *snapshotSchedule {
	return &snapshotSchedule{s: s, failed: map[string]failedSnapshots{}}
}

func (z *snapshotSchedule) run(ctx context.Context) {
	strays, looked := strayWorkers{}, time.Time{}
	for swept := (time.Time{}); pause.For(ctx, scheduleEvery); {
		if !z.s.informed() {
			continue
		}
		if err := z.once(ctx); err != nil && ctx.Err() == nil {
			z.s.log.Debug("cannot look for snapshots that are due; retrying", "error", err)
		}
		if time.Since(looked) > straysEvery {
			looked = time.Now()
			if err := strays.sweep(ctx, z.s); err != nil && ctx.Err() == nil {
				z.s.log.Debug("cannot look for workers of snapshots without an operation; retrying", "error", err)
			}
		}
		if time.Since(swept) < sweepUploadsEvery {
			continue
		}
		swept = time.Now()
		if n, err := z.s.opts.Snapshots.Store.Sweep(ctx, swept.Add(-uploadsKept)); err != nil && ctx.Err() == nil {
			z.s.log.Debug("cannot abort old uploads of snapshots; retrying in an hour", "error", err)
		} else if n > 0 {
			z.s.log.Info("aborted uploads of snapshots that nobody completed", "uploads", n)
		}
	}
}

// snapshotRules returns what the policies of all products say about snapshots.
func (s *Scheduler) snapshotRules(ctx context.Context) (map[string]snapshotRule, error) {
	products, _, err := s.store.Products(ctx)
	if err != nil {
		return nil, err
	}
	rules := map[string]snapshotRule{}
	for _, p := range products {
		if rule, asked := snapshotRuleOf(p.Policy); asked {
			rules[p.ProductID] = rule
		}
	}
	return rules, nil
}

// snapshotRuleOf returns what a policy says about snapshots, if it asks for any.
func snapshotRuleOf(p engine.Policy) (rule snapshotRule, asked bool) {
	if p.SnapshotIntervalS == nil || *p.SnapshotIntervalS <= 0 {
		return snapshotRule{}, false
	}
	return snapshotRule{time.Duration(*p.SnapshotIntervalS) * time.Second, keepOf(p)}, true
}

// keepOf returns how many snapshots that nobody asked for a product keeps of each engine.
func keepOf(p engine.Policy) int {
	if p.SnapshotKeep != nil {
		return *p.SnapshotKeep
	}
	return engine.DefaultSnapshotKeep
}

func (z *snapshotSchedule) once(ctx context.Context) error {
	rules, err := z.s.snapshotRules(ctx)
	if err != nil || len(rules) == 0 {
		return err
	}
	// Each node takes only what it works on at once. A queue of operations would keep callers
	// from engines that wait.
	free := map[string]int{}
	var due []*engine.Row
	now := time.Now()
	for _, row := range z.s.mirror.All() {
		if row.Op != nil && row.Op.Worker != "" && row.Op.Kind != engine.OpDrill {
			free[row.Op.Worker]--
		}
		rule, any := rules[row.ProductID]
		if any && snapshotDue(row, rule, now) && !z.waits(row.EngineID, now) && !z.s.nodeSilent(row.NodeID) {
			due = append(due, row)
		}
	}
	slices.SortFunc(due, func(a, b *engine.Row) int {
		return cmp.Or(lastSnapshot(a).Compare(lastSnapshot(b)), cmp.Compare(a.EngineID, b.EngineID))
	})
	for _, row := range due {
		if free[row.NodeID]+max(1, z.s.opts.Snapshots.PerNode) <= 0 {
			continue
		}
		free[row.NodeID]--
		z.take(ctx, row, rules[row.ProductID])
	}
	return nil
}

// lastSnapshot returns when an engine's newest snapshot was taken; zero: never.
func lastSnapshot(row *engine.Row) time.Time {
	if row.Snapshot == nil {
		return time.Time{}
	}
	return row.Snapshot.At
}

// snapshotDue reports whether an engine is to have a snapshot now. One that rests has changed
// nothing since it came to rest, and gets one then. The others are spread over a part of the
// interval, by their ids.
func snapshotDue(row *engine.Row, rule snapshotRule, now time.Time) bool {
	if row.Op != nil || row.Warm != "" || row.VolumeID == "" || row.Reason == engine.ReasonBrainMissing {
		return false
	}
	last := lastSnapshot(row)
	switch row.State {
	case engine.Running:
		if last.IsZero() {
			return !now.Before(row.CreatedAt.Add(jitter(row.EngineID, rule.every)))
		}
		return !now.Before(last.Add(rule.every + jitter(row.EngineID, rule.every/jitterPart)))
	case engine.Stopped, engine.Sleeping:
		return changedSince(row)
	}
	return false
}

// jitter returns a time below most that is always the same for an engine.
func jitter(engineID string, most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(engineID))
	return time.Duration(h.Sum64() % uint64(most))
}

// waits reports whether an engine's last attempts failed and the next one is not due yet.
func (z *snapshotSchedule) waits(engineID string, now time.Time) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return now.Before(z.failed[engineID].next)
}

// take begins a snapshot, and notes its result when it is there.
func (z *snapshotSchedule) take(ctx context.Context, row *engine.Row, rule snapshotRule) {
	t := &engine.Taking{SnapshotID: newSnapshotID(row), Trigger: engine.TriggerSchedule}
	o, err := z.s.propose(ctx, row, proposal{
		kind: engine.OpSnapshot, action: audit.ActionSnapshot, actor: actorSystem, backends: []string{"nomad", "vault"},
		prepare: func(row *engine.Row) error { return z.s.prepareSnapshot(row, t) },
	})
	if err != nil {
		z.note(row, rule, err)
		return
	}
	z.s.ops.Background(func(ctx context.Context) {
		_, err := o.Wait(ctx)
		if now, rerr := z.s.store.Engine(ctx, row.ProductID, row.UserID); err != nil && rerr == nil && now.Snapshot != nil && now.Snapshot.ID == t.SnapshotID {
			err = nil // it was stored when it gave way
		}
		z.note(row, rule, err)
		if err == nil {
			err = z.s.pruneSnapshots(ctx, row.EngineID, t.SnapshotID, rule.keep)
		}
		if err != nil && ctx.Err() == nil {
			z.s.log.Warn("a scheduled snapshot failed, or old ones cannot be deleted", "engine_id", row.EngineID, "product_id", row.ProductID, "error", err)
		}
	})
}

func (z *snapshotSchedule) note(row *engine.Row, rule snapshotRule, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err == nil {
		delete(z.failed, row.EngineID)
		return
	}
	if overtaken(err) {
		return // it is looked at again in a moment
	}
	f := z.failed[row.EngineID]
	f.count++
	f.next = time.Now().Add(engine.Doubled(firstSnapshotRetry, f.count, rule.every))
	z.failed[row.EngineID] = f
}

// pruneSnapshots deletes the oldest of an engine's snapshots that the service took by
// itself, but for the newest ones. Those that somebody asked for stay until somebody deletes
// them.
func (s *Scheduler) pruneSnapshots(ctx context.Context, engineID, newest string, keep int) error {
	ids, err := s.snapshotIDs(ctx, engineID)
	if err != nil || len(ids) <= keep {
		return err
	}
	kept := 0
	var errs []error
	for i, id := range ids {
		of := store.Snapshot{EngineID: engineID, SnapshotID: id}
		m, err := s.opts.Snapshots.Store.Manifest(ctx, of)
		if kind := brain.KindOf(err); kind == brain.NotFound || kind == brain.Corrupt {
			continue
		}
		if err != nil {
			return err
		}
		if m.Trigger == engine.TriggerCall {
			continue
		}
		if kept++; kept > max(1, keep) && i > 0 && id != newest && !s.restoredFrom(of) {
			errs = append(errs, s.opts.Snapshots.Store.Delete(ctx, of))
		}
	}
	return errors.Join(errs...)
}

// restoredFrom reports whether an operation restores a snapshot.
func (s *Scheduler) restoredFrom(of store.Snapshot) bool {
	return slices.ContainsFunc(s.mirror.All(), func(row *engine.Row) bool {
		return row.Op != nil && row.Op.Restoring != nil && source(row.Op.Restoring) == of
	})
}
