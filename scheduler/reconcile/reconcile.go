// Package reconcile compares what exists with what should exist, and corrects the
// difference: it reads the world, makes a plan from it, and carries out its actions. It
// also rebuilds a registry that has lost rows, from the data in Vault and Nomad.
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
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// reconcileAtOnce is how many actions of a pass are in progress concurrently.
	reconcileAtOnce = 8
	// firstBackoff and lastBackoff limit the wait before a failed action is retried; each
	// wait is jittered by a half.
	firstBackoff = 5 * time.Second
	lastBackoff  = 15 * time.Minute
	// requestPoll is the interval of checks for a request while there was never one.
	requestPoll = 2 * time.Second
)

// Reconciler brings what runs into agreement with the rows, whatever caused the difference.
// Every replica has one; only the leader's works.
type Reconciler struct {
	d       Deps
	rebuilt registry.Recovery // by the attempts of a recovery in progress; only Run uses it

	mu       sync.Mutex
	wanted   chan struct{}      // closed when a pass is wanted at once
	suspects map[string]suspect // counts that differed in the last pass
	told     map[string]string  // reports by key: each is logged when it changes
	failed   map[string]failures
}

// failures are the successive failed attempts of one action.
type failures struct {
	n     int
	until time.Time // not before
}

// New returns a Reconciler. It works while Run and Listen run.
func New(d Deps) *Reconciler {
	return &Reconciler{d: d, wanted: make(chan struct{}), told: map[string]string{}, failed: map[string]failures{}}
}

// Trigger requests a pass at once, if this replica leads. A pass in progress that is
// throttled speeds up.
func (r *Reconciler) Trigger() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.wanted:
	default:
		close(r.wanted)
	}
}

// triggered returns a channel that the next trigger closes, or that has been closed since
// the last take.
func (r *Reconciler) triggered() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wanted
}

// take reports whether there was a trigger since its last call.
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

// Run makes a full pass at each interval, throttled until it is triggered. When this
// replica takes the lead, and when it is triggered, it makes one at once and unthrottled.
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
		if asked || due.IsZero() || !r.d.Guard.OK() { // it is unknown what the previous leader left unfinished
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

// Listen triggers when another replica requested a pass of the leader.
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

// pass reads the world once and acts on it. false: it did not, because the registry is not
// known to be complete; then it only makes a recovery.
func (r *Reconciler) pass(ctx context.Context, throttle cluster.Throttle) bool {
	began := time.Now()
	if !r.d.Guard.OK() {
		if err := r.recoverRegistry(ctx); err != nil && ctx.Err() == nil {
			r.d.Log.Warn("the registry is not rebuilt yet; retrying", "error", err)
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
	_ = group.Wait() // each error is stored with its action
	if r.d.Passed != nil {
		r.d.Passed(time.Since(began))
	}
	r.d.Log.Debug("reconciled", "actions", len(actions), "ms", time.Since(began).Milliseconds())
	return true
}

// remember keeps what the next pass needs of this one, and logs what only an operator can
// decide.
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
			r.d.Log.Warn("reconcile cannot read a list, so it removes nothing until it can", "list", name, "error", w.missing[name])
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
				r.d.Log.Error("reconcile leaves an ambiguous object to an operator", "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "why", a.Why)
			})
		case ActWatchQuota, ActCorrectQuota:
			r.suspects[a.ProductID] = a.quota
		}
	}
	r.told, r.failed = told, failed
}

// due reports whether an action may be tried now.
func (r *Reconciler) due(a *Action) bool {
	switch a.Act {
	case ActReport, ActKeep, ActWatchQuota:
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !time.Now().Before(r.failed[a.key()].until)
}

// attempt carries out one action and stores its result.
func (r *Reconciler) attempt(ctx context.Context, a *Action) {
	if ctx.Err() != nil || !r.d.Engines.Leads() {
		return
	}
	err := r.act(ctx, a)
	if r.d.Acted != nil {
		r.d.Acted(a.Act, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := a.key()
	if err == nil || ctx.Err() != nil {
		delete(r.failed, key)
		return
	}
	f := r.failed[key]
	wait := engine.Doubled(firstBackoff, f.n+1, lastBackoff)
	f.n, f.until = f.n+1, time.Now().Add(wait/2+rand.N(wait))
	r.failed[key] = f
	r.d.Log.Warn("an action of reconcile failed; retrying later", "act", string(a.Act), "subject", a.Subject, "engine_id", a.EngineID, "product_id", a.ProductID, "error", err)
}

// Plan is what a pass would do now.
type Plan struct {
	Actions []*Action
	// Incomplete names the lists that could not be read: then a pass would remove nothing.
	Incomplete []string
}

// Plan returns what a full pass would do now, on any replica, and changes nothing. Actions
// that a pass takes only after seeing something twice (a quota) are marked.
// BACKEND_UNAVAILABLE: the rows cannot be read.
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
