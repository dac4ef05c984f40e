// Package idle knows which engines are in use and puts the others to sleep: each replica
// tells whom it admitted (Activity), and the leader decides by that (Sleeper).
package idle

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/engine"
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
	row    *engine.Row
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
func (z *Sleeper) unmark(ctx context.Context, row *engine.Row) {
	if err := z.d.Engines.KeepFromSleep(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		z.d.Log.Debug("a row stays marked for sleep until its next admit", "engine_id", row.EngineID, "error", err)
	}
}
