package scheduler

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// sleepEvery is how often the leader reads what the replicas tell, and looks
	// for idle engines.
	sleepEvery = time.Second
	// sleepAtOnce bounds the rows that are marked, and the engines that are put
	// to sleep, at a time.
	sleepAtOnce = 64
	// sleepTurn is how long one engine may keep others from being put to sleep:
	// most are gone much sooner, and one that takes its 30 s is not waited for.
	sleepTurn = 3 * time.Second
	// attemptLimit is when an engine is given up for which not all replicas have
	// answered. It is longer than a replica that stopped keeps its key.
	attemptLimit = 40 * time.Second
	// longestIdle, in seconds, is what a longer idle time counts as: 68 years.
	longestIdle = math.MaxInt32
)

// sleeper puts idle engines to sleep, while this replica leads. It is two-phase,
// since an admit writes nothing: it marks the row, waits until all admits that
// may have read the row before have been told of, and begins the operation on
// that very row. An admit that reads the mark removes it first.
type sleeper struct {
	s *Scheduler

	mu   sync.Mutex
	feed *feed

	// Only the sweep uses these.
	woke     map[uint64]wakeUp   // by registry.Fingerprint: who gets a process that runs already is new to it
	sweeps   uint64              // how many times woke was looked through
	attempts map[uint64]*attempt // by registry.Fingerprint
}

// wakeUp is since when the leader knows a user's process to run.
type wakeUp struct {
	allocID string
	since   time.Time // as the row says, by another clock: the process may have been frozen before
	at      time.Time
	sweep   uint64 // the last one in which it ran
}

// attempt is an engine whose row is marked.
type attempt struct {
	row    *registry.Engine
	engine uint64
	used   time.Time // when it was last in use, as it was marked
	began  time.Time
	idle   time.Duration
	pause  bool // its product wants it frozen, not ended
}

func newSleeper(s *Scheduler) *sleeper {
	z := &sleeper{s: s}
	z.reset()
	return z
}

func (z *sleeper) reset() {
	z.mu.Lock()
	z.feed = newFeed()
	z.mu.Unlock()
	z.woke, z.attempts = map[uint64]wakeUp{}, map[uint64]*attempt{}
}

// run follows the activity and sweeps, until ctx ends. A sweep over many engines
// takes its time, and what the replicas tell is read all the same.
func (z *sleeper) run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { z.follow(ctx) })
	led, failing := false, false
	for pause.For(ctx, sleepEvery) {
		if !z.s.replica.Leader() || !z.s.guard.ok() {
			if led {
				z.reset() // what it knows will be stale when it leads again
			}
			led = false
			continue
		}
		led = true
		err := z.sweep(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			z.s.log.Warn("cannot put idle engines to sleep; trying again", "error", err)
		}
		failing = err != nil
	}
}

// follow reads what the replicas tell.
func (z *sleeper) follow(ctx context.Context) {
	failing := false
	for pause.For(ctx, sleepEvery) {
		if !z.s.replica.Leader() {
			continue
		}
		view, err := z.s.store.Activity(ctx)
		if err == nil {
			z.mu.Lock()
			z.feed.observe(view, time.Now())
			z.mu.Unlock()
		} else if !failing && ctx.Err() == nil {
			z.s.log.Warn("cannot read which engines are in use; nothing is put to sleep meanwhile", "error", err)
		}
		failing = err != nil
	}
}

// sweep goes on with the engines that are marked, and marks those that have
// fallen idle since.
func (z *sleeper) sweep(ctx context.Context) error {
	if !z.sighted() {
		return nil
	}
	if len(z.attempts) > 0 {
		if err := z.mayChange(ctx); err != nil {
			return err
		}
		z.settle(ctx)
	}
	rows := z.s.mirror.Awake()
	if len(rows) == 0 {
		return nil
	}
	rules, err := z.rules(ctx)
	if err != nil {
		return err
	}
	idle := z.idle(rows, rules, time.Now())
	if len(idle) == 0 {
		return nil
	}
	if err := z.mayChange(ctx); err != nil {
		return err
	}
	return z.mark(ctx, idle)
}

// mayChange: nothing is put to sleep unaudited, nor while it cannot be carried
// out.
func (z *sleeper) mayChange(ctx context.Context) error {
	return z.s.checks.need(ctx, "consul", "nomad", "audit")
}

// sighted says whether this replica knows enough of rows and activity, by now,
// to judge who is idle.
func (z *sleeper) sighted() bool {
	select {
	case <-z.s.mirror.Synced():
	default:
		return false
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	fresh := !z.feed.at.IsZero() && time.Since(z.feed.at) < brokenAfter
	return fresh && z.s.Ready() == nil && z.s.mirror.Age() < staleView
}

// mark proposes sleep for engines that are idle.
func (z *sleeper) mark(ctx context.Context, idle []*attempt) error {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(sleepAtOnce)
	for _, a := range idle {
		if ctx.Err() != nil || !z.s.replica.Leader() {
			break
		}
		group.Go(func() error {
			if err := z.s.store.ProposeSleep(ctx, a.row); err != nil {
				if !errors.Is(err, registry.ErrConflict) {
					return err
				}
				return nil // it is not as the view says: the next sweep sees
			}
			mu.Lock()
			defer mu.Unlock()
			z.attempts[a.engine] = a
			return nil
		})
	}
	return group.Wait()
}

// idleRule is what a product wants of its idle engines.
type idleRule struct {
	after time.Duration // 0: they never sleep
	pause bool
}

// rules are each product's; there is none for engines without a user, nor for those of
// a product whose record cannot be read.
func (z *sleeper) rules(ctx context.Context) (map[string]idleRule, error) {
	products, _, err := z.s.store.Products(ctx)
	if err != nil {
		return nil, err
	}
	rules := make(map[string]idleRule, len(products))
	for _, p := range products {
		rule := idleRule{after: z.s.opts.IdleTimeout, pause: p.Policy.SleepMode == registry.SleepPause}
		if timeout := p.Policy.IdleTimeoutS; timeout != nil {
			rule.after = time.Duration(min(*timeout, longestIdle)) * time.Second
		}
		rules[p.ProductID] = rule
	}
	return rules, nil
}

// idle are the engines that were not in use for their timeout and are not marked
// yet.
func (z *sleeper) idle(rows []*registry.Engine, rules map[string]idleRule, now time.Time) []*attempt {
	z.mu.Lock()
	defer z.mu.Unlock()
	var idle []*attempt
	z.sweeps++
	for _, row := range rows {
		engine := registry.Fingerprint(row.ProductID, row.UserID)
		woke, known := z.woke[engine]
		if !known || woke.allocID != row.AllocID || !woke.since.Equal(row.RunningSince) {
			woke = wakeUp{allocID: row.AllocID, since: row.RunningSince, at: now}
		}
		woke.sweep = z.sweeps
		z.woke[engine] = woke
		rule := rules[row.ProductID]
		if rule.after <= 0 || z.attempts[engine] != nil {
			continue
		}
		used := z.feed.lastUsed(engine)
		if idleTime := idleFor(now, used, woke.at, row.KeepAwakeUntil); idleTime >= rule.after {
			idle = append(idle, &attempt{row: row.Clone(), engine: engine, used: used, began: now, idle: idleTime, pause: rule.pause})
		}
	}
	for engine, woke := range z.woke {
		if woke.sweep != z.sweeps {
			delete(z.woke, engine)
		}
	}
	z.feed.forget(func(engine uint64) bool { _, runs := z.woke[engine]; return runs }, now.Add(-time.Minute))
	return idle
}

// idleFor is how long an engine has been idle, which it is not as long as it is
// kept awake.
func idleFor(now, used, woke, keptAwake time.Time) time.Duration {
	since := used
	if woke.After(since) {
		since = woke
	}
	idle := now.Sub(since)
	if !keptAwake.IsZero() {
		// The one clock that is compared with another machine's: the product was
		// told this time.
		idle = min(idle, now.Round(0).Sub(keptAwake))
	}
	return idle
}

// verdict is what becomes of an engine that is marked.
type verdict int

const (
	undecided verdict = iota
	inUse
	asleep
)

// judge says what the replicas have told since the engine was marked.
func (f *feed) judge(engine uint64, used time.Time, index uint64) verdict {
	switch {
	case f.lastUsed(engine).After(used):
		return inUse
	case f.settled(engine, index):
		return asleep
	}
	return undecided
}

// settle puts those to sleep of whom every replica has told that they are not in
// use, and lets go of those that are.
func (z *sleeper) settle(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(sleepAtOnce)
	for engine, a := range z.attempts {
		if ctx.Err() != nil || !z.s.replica.Leader() {
			break
		}
		z.mu.Lock()
		verdict := z.feed.judge(a.engine, a.used, a.row.Index)
		z.mu.Unlock()
		if verdict == undecided && time.Since(a.began) < attemptLimit {
			continue
		}
		delete(z.attempts, engine)
		group.Go(func() error {
			if verdict == asleep && z.sleep(ctx, a) {
				return nil
			}
			z.unmark(ctx, a.row)
			return nil
		})
	}
	_ = group.Wait() // none returns an error
}

// sleep begins to put an engine to sleep and says whether it did.
func (z *sleeper) sleep(ctx context.Context, a *attempt) bool {
	log := z.s.log.With("engine_id", a.row.EngineID)
	if node, known := z.s.cluster.Node(a.row.NodeID); !known || node.Down {
		return false // nothing could be confirmed
	}
	busy, err := z.s.probe.Busy(ctx, a.row.URL)
	if err != nil {
		log.Debug("an idle engine does not say whether it is busy; leaving it alone", "error", err)
	}
	if err != nil || busy {
		z.mu.Lock()
		z.feed.used[a.engine] = time.Now()
		z.mu.Unlock()
		return false
	}
	o, err := z.s.propose(ctx, a.row, proposal{
		kind: registry.OpSleep, action: audit.ActionSleep, actor: actorSystem, backends: []string{"nomad"},
		details: map[string]any{"idle_s": int(a.idle.Seconds())},
		prepare: func(row *registry.Engine) error {
			if row.Desired = registry.Sleeping; a.pause {
				row.Frozen = z.s.freezable(row)
			}
			return nil
		},
	})
	if errors.Is(err, registry.ErrConflict) {
		return true // somebody is using it: not idle, nor marked any more
	}
	if err != nil {
		log.Warn("cannot put an idle engine to sleep", "error", err)
		return false
	}
	if o == nil {
		return true // stopping: another replica finishes it
	}
	turn := time.NewTimer(sleepTurn)
	defer turn.Stop()
	select {
	case <-o.answered:
	case <-turn.C:
	case <-ctx.Done():
	}
	return true
}

// unmark spares the next admit a write. It may fail: the mark alone does nothing.
func (z *sleeper) unmark(ctx context.Context, row *registry.Engine) {
	if err := z.s.keepFromSleep(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		z.s.log.Debug("a row stays marked for sleep until its next admit", "engine_id", row.EngineID, "error", err)
	}
}
