// Package idle determines which engines are in use, and puts the others to sleep: each
// replica reports its admits (Activity), and the leader decides (Sleeper).
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
	// sleepEvery is the interval at which the leader reads the replicas' reports, and
	// checks for idle engines.
	sleepEvery = time.Second
	// sleepAtOnce limits the number of rows that are marked, and of engines that are put to
	// sleep, concurrently.
	sleepAtOnce = 64
	// sleepTurn is how long one engine can delay others: most processes end much earlier,
	// and one that takes its 30 s is not waited for.
	sleepTurn = 3 * time.Second
	// attemptLimit is when an attempt is given up because not all replicas have reported.
	// It is longer than the key of a dead replica exists.
	attemptLimit = 40 * time.Second
	// longestIdle, in seconds, replaces a longer idle time: 68 years.
	longestIdle = math.MaxInt32
)

// Sleeper puts idle engines to sleep, while this replica leads. It works in two phases,
// because an admit writes nothing: it marks the row, waits until all admits that may have
// read the row before are reported, and begins the operation on exactly that row. An admit
// that reads the mark removes it first.
type Sleeper struct {
	d Deps

	mu   sync.Mutex
	feed *feed

	// Only the sweep uses the fields below.
	woke     map[uint64]wakeUp   // by registry.Fingerprint: since when its current process runs
	sweeps   uint64              // how many times woke was checked
	attempts map[uint64]*attempt // by registry.Fingerprint
}

// wakeUp is since when the leader knows that a user's process runs.
type wakeUp struct {
	allocID string
	since   time.Time // from the row, by another clock: the process may have been frozen before
	at      time.Time
	sweep   uint64 // the last sweep in which it ran
}

// attempt is an engine whose row is marked.
type attempt struct {
	row    *engine.Row
	engine uint64
	used   time.Time // when it was last in use, as of the mark
	began  time.Time
	idle   time.Duration
	pause  bool // its product wants it frozen instead of ended
}

// NewSleeper returns a Sleeper. It works while Run runs.
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

// Run reads the reports and sweeps until ctx ends. They are independent, because a sweep
// over many engines takes long.
func (z *Sleeper) Run(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { z.follow(ctx) })
	led, failing := false, false
	for pause.For(ctx, sleepEvery) {
		if !z.d.Replica.Leader() || !z.d.Engines.Whole() {
			if led {
				z.reset() // what it knows will be outdated when it leads again
			}
			led = false
			continue
		}
		led = true
		err := z.sweep(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			z.d.Log.Warn("cannot put idle engines to sleep; retrying", "error", err)
		}
		failing = err != nil
	}
}

// follow reads the replicas' reports.
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

// sweep continues with marked engines, and marks those that have become idle since.
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

// sighted reports whether this replica knows enough of rows and activity now to decide
// which engines are idle.
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

// mark proposes sleep for idle engines.
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
				return nil // the row has changed; the next sweep handles it
			}
			mu.Lock()
			defer mu.Unlock()
			z.attempts[a.engine] = a
			return nil
		})
	}
	return group.Wait()
}

// settle puts to sleep the marked engines that no replica reports as used, and releases the
// others.
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

// sleep begins to put an engine to sleep, and reports whether it did.
func (z *Sleeper) sleep(ctx context.Context, a *attempt) bool {
	log := z.d.Log.With("engine_id", a.row.EngineID)
	if node, known := z.d.Nodes.Node(a.row.NodeID); !known || node.Down {
		return false // nothing could be confirmed
	}
	busy, err := z.d.Engines.Busy(ctx, a.row)
	if err != nil {
		log.Debug("an idle engine does not report whether it is busy; leaving it alone", "error", err)
	}
	if err != nil || busy {
		z.mu.Lock()
		z.feed.used[a.engine] = time.Now()
		z.mu.Unlock()
		return false
	}
	asleep, err := z.d.Engines.PutToSleep(ctx, a.row, a.idle, a.pause)
	if errors.Is(err, registry.ErrConflict) {
		return true // it is in use, and no longer marked
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

// unmark saves the next admit a write. It may fail, because the mark alone has no effect.
func (z *Sleeper) unmark(ctx context.Context, row *engine.Row) {
	if err := z.d.Engines.KeepFromSleep(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		z.d.Log.Debug("cannot remove the sleep mark from a row; the next admit does it", "engine_id", row.EngineID, "error", err)
	}
}
