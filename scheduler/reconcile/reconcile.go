// Package reconcile compares what exists with what should exist, and mends the
// difference: the world is read, a plan is made of it, and its acts are carried out. It
// also rebuilds a registry that has lost rows, from what Vault and Nomad say.
package reconcile

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// reconcileAtOnce is how many acts of a pass are under way at a time.
	reconcileAtOnce = 8
	// firstBackoff and lastBackoff bound the wait before something that failed is
	// tried again; each wait is jittered by a half.
	firstBackoff = 5 * time.Second
	lastBackoff  = 15 * time.Minute
	// requestPoll is how often a request for a pass is looked for while there
	// never was one.
	requestPoll = 2 * time.Second
)

// Reconciler brings what runs into agreement with what the rows say: level by
// level, whatever led to it. Every replica has one; the leader's works.
type Reconciler struct {
	d       Deps
	rebuilt registry.Recovery // by the attempts of a recovery that is under way; only Run uses it

	mu       sync.Mutex
	wanted   chan struct{}      // closed when a pass is wanted at once
	suspects map[string]suspect // counts that did not agree in the last pass
	told     map[string]string  // reports by key: each is logged when it changes
	failed   map[string]failures
}

// failures are the tries of one act in a row.
type failures struct {
	n     int
	until time.Time // not before
}

// New returns a reconciler; Run and Listen make it work.
func New(d Deps) *Reconciler {
	return &Reconciler{d: d, wanted: make(chan struct{}), told: map[string]string{}, failed: map[string]failures{}}
}

// Trigger asks for a pass at once, if this replica leads; one that is under way and
// takes its time stops doing so.
func (r *Reconciler) Trigger() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.wanted:
	default:
		close(r.wanted)
	}
}

// triggered is closed by the next trigger, or has been since the last take.
func (r *Reconciler) triggered() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wanted
}

// take says whether there was a trigger since it was called before.
func (r *Reconciler) take() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.wanted:
		r.wanted = make(chan struct{})
		return true
	default:
		return false
	}
}

// Run makes a full pass at each interval, one that takes its time until it is triggered;
// at once, and as fast as it can, when this replica takes the lead and when it is
// triggered.
func (r *Reconciler) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.triggered():
		case <-tick.C:
		}
		asked := r.take()
		if !r.d.Engines.Ready() || !r.d.Engines.Leads() {
			due = time.Time{}
			continue
		}
		throttle := cluster.Throttle(r.triggered())
		if asked || due.IsZero() || !r.d.Guard.OK() { // nobody knows yet what the leader before left undone
			throttle = cluster.Unthrottled
		} else if time.Now().Before(due) {
			continue
		}
		acted := r.pass(r.d.Engines.Request(ctx), throttle)
		due = time.Now().Add(r.d.Interval)
		if !acted || !r.d.Guard.OK() {
			due = time.Time{} // at the next tick
		}
	}
}

// Listen triggers when another replica asked the leader for a pass.
func (r *Reconciler) Listen(ctx context.Context) {
	var seen uint64
	for first := true; ctx.Err() == nil; first = false {
		index, err := r.d.Store.ReconcileRequested(ctx, seen)
		switch {
		case err != nil || index == 0:
			seen = 0
			pause.For(ctx, requestPoll)
			continue
		case index != seen && !first:
			r.Trigger()
		}
		seen = index
	}
}

// pass looks at the world once and acts on it. false: it did not, for the registry is not
// known to be whole; a recovery acts on nothing else.
func (r *Reconciler) pass(ctx context.Context, throttle cluster.Throttle) bool {
	began := time.Now()
	if !r.d.Guard.OK() {
		if err := r.recoverRegistry(ctx); err != nil && ctx.Err() == nil {
			r.d.Log.Warn("the registry is not rebuilt yet; trying again", "error", err)
		}
		return false
	}
	r.mu.Lock()
	before := r.suspects
	r.mu.Unlock()
	w := r.look(ctx, before, throttle)
	if !r.d.Guard.Forward(ctx) {
		return false
	}
	r.d.Pool.Suspect(w.withoutVolume())
	r.announce(ctx, w)
	r.witnessAll(ctx, w)
	actions := plan(w)
	r.remember(w, actions)
	var group errgroup.Group
	group.SetLimit(reconcileAtOnce)
	for _, a := range actions {
		if r.due(a) {
			group.Go(func() error { r.attempt(ctx, a); return nil })
		}
	}
	_ = group.Wait() // each error is kept with its act
	r.d.Log.Debug("reconciled", "actions", len(actions), "ms", time.Since(began).Milliseconds())
	return true
}

// remember keeps what the next pass needs of this one, and tells what only an
// operator can settle.
func (r *Reconciler) remember(w *world, actions []*Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	told, failed := map[string]string{}, map[string]failures{}
	if w.read(listRows, listQuotas) {
		r.suspects = map[string]suspect{}
	}
	tell := func(key, what string, log func()) {
		if r.told[key] != what {
			log()
		}
		told[key] = what
	}
	for _, name := range slices.Sorted(maps.Keys(w.missing)) {
		tell("list/"+name, "missing", func() {
			r.d.Log.Warn("reconcile cannot read a list, and removes nothing until it can", "list", name, "error", w.missing[name])
		})
	}
	for _, a := range actions {
		key := a.key()
		if f, any := r.failed[key]; any {
			failed[key] = f
		}
		switch a.Act {
		case ActReport:
			tell(key, a.Why, func() {
				r.d.Log.Error("reconcile refuses to touch what is ambiguous", "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "why", a.Why)
			})
		case ActWatchQuota, ActCorrectQuota:
			r.suspects[a.ProductID] = a.quota
		}
	}
	r.told, r.failed = told, failed
}

// due says whether an act may be tried now.
func (r *Reconciler) due(a *Action) bool {
	switch a.Act {
	case ActReport, ActKeep, ActWatchQuota:
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !time.Now().Before(r.failed[a.key()].until)
}

// attempt does one act and keeps what became of it.
func (r *Reconciler) attempt(ctx context.Context, a *Action) {
	if ctx.Err() != nil || !r.d.Engines.Leads() {
		return
	}
	err := r.act(ctx, a)
	r.mu.Lock()
	defer r.mu.Unlock()
	key := a.key()
	if err == nil || ctx.Err() != nil {
		delete(r.failed, key)
		return
	}
	f := r.failed[key]
	wait := min(firstBackoff<<min(f.n, 10), lastBackoff)
	f.n, f.until = f.n+1, time.Now().Add(wait/2+rand.N(wait))
	r.failed[key] = f
	r.d.Log.Warn("an act of reconcile failed; trying again later", "act", string(a.Act), "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "error", err)
}

// Plan is what a pass would do now.
type Plan struct {
	Actions []*Action
	// Incomplete names the lists that could not be read: a pass would remove
	// nothing.
	Incomplete []string
}

// Plan says what a full pass would do now, on any replica; it changes
// nothing. What a pass only does after it saw something twice (a quota) is told
// as such. BACKEND_UNAVAILABLE: the rows cannot be read.
func (r *Reconciler) Plan(ctx context.Context) (*Plan, error) {
	r.mu.Lock()
	before := maps.Clone(r.suspects)
	r.mu.Unlock()
	w := r.look(ctx, before, cluster.Unthrottled)
	if err := w.missing[listRows]; err != nil {
		return nil, err
	}
	return &Plan{Actions: plan(w), Incomplete: slices.Sorted(maps.Keys(w.missing))}, nil
}
