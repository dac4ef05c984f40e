package service

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/internal/preflight"
)

const (
	// rightsEvery is the interval at which all rights are tried, rightsAgain while one is
	// missing, and rightsWithin limits one such check.
	rightsEvery, rightsAgain, rightsWithin = 10 * time.Minute, 10 * time.Second, 30 * time.Second
	// rightsPause is the minimum time between two checks, however many calls are refused.
	rightsPause = time.Second
	// refusedEvery is the minimum time between two log lines of the same refusal.
	refusedEvery = time.Minute
)

// rights tries the service's rights in the stores: at the start, regularly, and after a
// refusal. It logs what is missing, and what is there again.
type rights struct {
	stores *preflight.Stores
	lacks  func(stores map[string]bool)
	log    hclog.Logger
	poke   chan struct{}

	missing map[string]preflight.Result // by Store and Needs, as logged

	mu     sync.Mutex
	logged map[link.Refusal]time.Time // without Said
}

func newRights(stores *preflight.Stores, log hclog.Logger) *rights {
	return &rights{stores: stores, log: log, poke: make(chan struct{}, 1), missing: map[string]preflight.Result{}, logged: map[link.Refusal]time.Time{}}
}

// refused logs a refusal, once in refusedEvery, and lets all rights be tried.
func (r *rights) refused(why link.Refusal) {
	defer r.again()
	kind := why
	kind.Said = ""
	r.mu.Lock()
	known := time.Since(r.logged[kind]) < refusedEvery
	if !known {
		r.logged[kind] = time.Now()
	}
	r.mu.Unlock()
	if known {
		return
	}
	r.log.Error("a store refuses the service's token or a right of it; calls that need it fail until an operator mends that (docs/operations.md)",
		"store", why.Store, "endpoint", why.Endpoint, "needs", why.Needs, "said", why.Said)
}

func (r *rights) again() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// run tries the rights until ctx ends.
func (r *rights) run(ctx context.Context) {
	r.settings(ctx)
	for ctx.Err() == nil {
		r.try(ctx)
		wait := rightsEvery
		if len(r.missing) > 0 {
			wait = rightsAgain
		}
		if !pause.For(ctx, rightsPause) {
			return
		}
		select {
		case <-ctx.Done():
		case <-r.poke:
		case <-time.After(wait):
		}
	}
}

func (r *rights) try(ctx context.Context) {
	limited, cancel := context.WithTimeout(link.Trying(link.FailFast(ctx)), rightsWithin)
	defer cancel()
	lacks, results := map[string]bool{}, r.stores.Rights(limited)
	responds := map[string]bool{}
	for _, right := range results {
		responds[right.Store] = responds[right.Store] || right.State == preflight.OK
	}
	for _, right := range results {
		key := right.Store + " " + right.Needs
		_, known := r.missing[key]
		switch {
		case right.State == preflight.Missing && !known:
			r.missing[key] = right
			r.log.Error("the service lacks a right", "store", right.Store, "needs", right.Needs, "said", right.Said, "remedy", right.Remedy)
		case right.State == preflight.OK && known:
			delete(r.missing, key)
			r.log.Info("the service has a right again", "store", right.Store, "needs", right.Needs)
		case right.State == preflight.Unknown && known && responds[right.Store]: // such as without an engine that runs
			delete(r.missing, key)
		}
	}
	for _, right := range r.missing {
		lacks[right.Store] = true
	}
	r.lacks(lacks)
}

// settings logs the agents' settings that the service depends on, where they are wrong.
func (r *rights) settings(ctx context.Context) {
	limited, cancel := context.WithTimeout(link.Trying(ctx), rightsWithin)
	defer cancel()
	for _, s := range r.stores.Settings(limited) {
		switch s.State {
		case preflight.Missing, preflight.Advice:
			r.log.Warn("a setting of an agent should be changed", "store", s.Store, "needs", s.Needs, "said", s.Said, "remedy", s.Remedy)
		case preflight.Unknown:
			r.log.Debug("a setting of an agent cannot be read", "store", s.Store, "needs", s.Needs, "said", s.Said)
		}
	}
}
