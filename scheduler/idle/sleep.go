// Package idle knows which engines are in use and puts the others to sleep: each replica
// tells whom it admitted (Activity), and the leader decides by that (Sleeper).
package idle

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
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

// Deps are what a sleeper works with.
type Deps struct {
	Log     hclog.Logger
	Replica Replica
	Store   Store
	Rows    Rows
	Nodes   Nodes
	Engines Engines
	// Timeout is after how long without an admit an engine is put to sleep, where its
	// product's policy says nothing; 0: never.
	Timeout time.Duration
}

// Replica says whether this replica leads.
type Replica interface {
	Leader() bool
}

// Store is what the registry tells of who is in use, and where rows are marked.
type Store interface {
	Activity(ctx context.Context) (*registry.Activity, error)
	Products(ctx context.Context) ([]*registry.Product, []*registry.Unreadable, error)
	ProposeSleep(ctx context.Context, row *registry.Engine) error
}

// Rows is the view of the rows.
type Rows interface {
	Synced() <-chan struct{}
	Awake() []*registry.Engine
}

// Nodes is the view of the nodes.
type Nodes interface {
	Node(id string) (cluster.Node, bool)
}

// Engines is what engines are asked, and what is done to them.
type Engines interface {
	// Whole says whether the registry is whole.
	Whole() bool
	// Fresh says whether the views of rows and nodes are fit to be judged by.
	Fresh() bool
	// MayChange returns an error while nothing may be put to sleep: it could not be
	// audited, or not be carried out.
	MayChange(ctx context.Context) error
	// Busy asks an engine whether it works between requests.
	Busy(ctx context.Context, url string) (bool, error)
	// PutToSleep begins to put an engine to sleep whose row is the one that is given,
	// after so long without use; frozen: its process is to be kept. The channel is
	// closed when that has ended; it is nil where another replica goes on with it.
	// registry.ErrConflict: the row is not that one any more.
	PutToSleep(ctx context.Context, row *registry.Engine, idle time.Duration, frozen bool) (<-chan struct{}, error)
	// KeepFromSleep takes the mark off a row. registry.ErrConflict.
	KeepFromSleep(ctx context.Context, row *registry.Engine) error
}

// Sleeper puts idle engines to sleep, while this replica leads. It is two-phase,
// since an admit writes nothing: it marks the row, waits until all admits that
// may have read the row before have been told of, and begins the operation on
// that very row. An admit that reads the mark removes it first.
type Sleeper struct {
	d Deps

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

// NewSleeper returns a sleeper; Run makes it work.
func NewSleeper(d Deps) *Sleeper {
	z := &Sleeper{d: d}
	z.reset()
	return z
}

func (z *Sleeper) reset() {
	z.mu.Lock()
	z.feed = newFeed()
	z.mu.Unlock()
	z.woke, z.attempts = map[uint64]wakeUp{}, map[uint64]*attempt{}
}

// Run follows the activity and sweeps, until ctx ends. A sweep over many engines
// takes its time, and what the replicas tell is read all the same.
func (z *Sleeper) Run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { z.follow(ctx) })
	led, failing := false, false
	for pause.For(ctx, sleepEvery) {
		if !z.d.Replica.Leader() || !z.d.Engines.Whole() {
			if led {
				z.reset() // what it knows will be stale when it leads again
			}
			led = false
			continue
		}
		led = true
		err := z.sweep(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			z.d.Log.Warn("cannot put idle engines to sleep; trying again", "error", err)
		}
		failing = err != nil
	}
}

// follow reads what the replicas tell.
func (z *Sleeper) follow(ctx context.Context) {
	failing := false
	for pause.For(ctx, sleepEvery) {
		if !z.d.Replica.Leader() {
			continue
		}
		view, err := z.d.Store.Activity(ctx)
		if err == nil {
			z.mu.Lock()
			z.feed.observe(view, time.Now())
			z.mu.Unlock()
		} else if !failing && ctx.Err() == nil {
			z.d.Log.Warn("cannot read which engines are in use; nothing is put to sleep meanwhile", "error", err)
		}
		failing = err != nil
	}
}

// sweep goes on with the engines that are marked, and marks those that have
// fallen idle since.
func (z *Sleeper) sweep(ctx context.Context) error {
	if !z.sighted() {
		return nil
	}
	if len(z.attempts) > 0 {
		if err := z.d.Engines.MayChange(ctx); err != nil {
			return err
		}
		z.settle(ctx)
	}
	rows := z.d.Rows.Awake()
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
	if err := z.d.Engines.MayChange(ctx); err != nil {
		return err
	}
	return z.mark(ctx, idle)
}

// sighted says whether this replica knows enough of rows and activity, by now,
// to judge who is idle.
func (z *Sleeper) sighted() bool {
	select {
	case <-z.d.Rows.Synced():
	default:
		return false
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	fresh := !z.feed.at.IsZero() && time.Since(z.feed.at) < brokenAfter
	return fresh && z.d.Engines.Fresh()
}

// mark proposes sleep for engines that are idle.
func (z *Sleeper) mark(ctx context.Context, idle []*attempt) error {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(sleepAtOnce)
	for _, a := range idle {
		if ctx.Err() != nil || !z.d.Replica.Leader() {
			break
		}
		group.Go(func() error {
			if err := z.d.Store.ProposeSleep(ctx, a.row); err != nil {
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
func (z *Sleeper) rules(ctx context.Context) (map[string]idleRule, error) {
	products, _, err := z.d.Store.Products(ctx)
	if err != nil {
		return nil, err
	}
	rules := make(map[string]idleRule, len(products))
	for _, p := range products {
		rule := idleRule{after: z.d.Timeout, pause: p.Policy.SleepMode == registry.SleepPause}
		if timeout := p.Policy.IdleTimeoutS; timeout != nil {
			rule.after = time.Duration(min(*timeout, longestIdle)) * time.Second
		}
		rules[p.ProductID] = rule
	}
	return rules, nil
}

// idle are the engines that were not in use for their timeout and are not marked
// yet.
func (z *Sleeper) idle(rows []*registry.Engine, rules map[string]idleRule, now time.Time) []*attempt {
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

// settle puts those to sleep of whom every replica has told that they are not in
// use, and lets go of those that are.
func (z *Sleeper) settle(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(sleepAtOnce)
	for engine, a := range z.attempts {
		if ctx.Err() != nil || !z.d.Replica.Leader() {
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
func (z *Sleeper) sleep(ctx context.Context, a *attempt) bool {
	log := z.d.Log.With("engine_id", a.row.EngineID)
	if node, known := z.d.Nodes.Node(a.row.NodeID); !known || node.Down {
		return false // nothing could be confirmed
	}
	busy, err := z.d.Engines.Busy(ctx, a.row.URL)
	if err != nil {
		log.Debug("an idle engine does not say whether it is busy; leaving it alone", "error", err)
	}
	if err != nil || busy {
		z.mu.Lock()
		z.feed.used[a.engine] = time.Now()
		z.mu.Unlock()
		return false
	}
	asleep, err := z.d.Engines.PutToSleep(ctx, a.row, a.idle, a.pause)
	if errors.Is(err, registry.ErrConflict) {
		return true // somebody is using it: not idle, nor marked any more
	}
	if err != nil {
		log.Warn("cannot put an idle engine to sleep", "error", err)
		return false
	}
	if asleep == nil {
		return true // stopping: another replica finishes it
	}
	turn := time.NewTimer(sleepTurn)
	defer turn.Stop()
	select {
	case <-asleep:
	case <-turn.C:
	case <-ctx.Done():
	}
	return true
}

// unmark spares the next admit a write. It may fail: the mark alone does nothing.
func (z *Sleeper) unmark(ctx context.Context, row *registry.Engine) {
	if err := z.d.Engines.KeepFromSleep(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		z.d.Log.Debug("a row stays marked for sleep until its next admit", "engine_id", row.EngineID, "error", err)
	}
}
