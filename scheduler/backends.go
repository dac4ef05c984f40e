package scheduler

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

const (
	// pingTimeout limits one availability probe.
	pingTimeout = 2 * time.Second
	// auditTimeout limits a probe of the audit log, which may be a write on a busy disk.
	auditTimeout = audit.CallTimeout
	// pingTrust is how long the result of a probe is used.
	pingTrust = time.Second
	// awayTrust is how long an operation treats a dependency as unavailable after a failed
	// probe: as long as the callers need that waited for this probe. After that, an
	// operation may begin as soon as the dependency responds.
	awayTrust = 250 * time.Millisecond
)

// backendChecks probes dependencies before an operation touches anything, so that an
// unavailable dependency means 503 without a change. There is at most one probe of each
// dependency in progress, however many callers need it.
type backendChecks struct {
	ping map[string]func(context.Context) error

	mu   sync.Mutex
	last map[string]*backendCheck // by name
}

// backendCheck is one probe of a dependency.
type backendCheck struct {
	asked time.Time
	done  chan struct{} // closed when ended and err are set
	ended time.Time
	err   error
}

// trusted reports whether the result of a probe is still used; an error is used for the
// time away.
func (c *backendCheck) trusted(away time.Duration) bool {
	select {
	case <-c.done:
		return c.err == nil && time.Since(c.asked) < pingTrust || c.err != nil && time.Since(c.ended) < away
	default:
		return true // it is in progress
	}
}

// need returns the error of a named dependency that is unavailable. Concurrent callers
// share one probe.
func (b *backendChecks) need(ctx context.Context, names ...string) error {
	open := make([]string, 0, 4)
	for _, name := range names {
		known, err := b.known(name)
		if err != nil {
			return err
		}
		if !known {
			open = append(open, name)
		}
	}
	if len(open) == 0 {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range open {
		group.Go(func() error { return b.look(ctx, name, awayTrust) })
	}
	return group.Wait()
}

// known returns the last result of a dependency, if an operation may use it.
func (b *backendChecks) known(name string) (bool, error) {
	b.mu.Lock()
	c := b.last[name]
	b.mu.Unlock()
	if c == nil || !c.trusted(awayTrust) {
		return false, nil
	}
	select {
	case <-c.done:
		return true, c.err
	default:
		return false, nil
	}
}

// look returns the last result of a dependency, or probes it; an error is used for the time
// away.
func (b *backendChecks) look(ctx context.Context, name string, away time.Duration) error {
	b.mu.Lock()
	c := b.last[name]
	first := c == nil || !c.trusted(away)
	if first {
		c = b.begin(name)
	}
	b.mu.Unlock()
	if first {
		return b.ask(ctx, name, c)
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forget makes the next caller probe a dependency.
func (b *backendChecks) forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.last, name)
}

// begin records that a probe is in progress. The caller holds the lock.
func (b *backendChecks) begin(name string) *backendCheck {
	c := &backendCheck{asked: time.Now(), done: make(chan struct{})}
	if b.last == nil {
		b.last = map[string]*backendCheck{}
	}
	b.last[name] = c
	return c
}

// ask probes a dependency. Other callers wait for the result too, so the probe does not end
// with its caller's request.
func (b *backendChecks) ask(ctx context.Context, name string, c *backendCheck) error {
	limit := pingTimeout
	if name == "audit" {
		limit = auditTimeout
	}
	ctx, cancel := context.WithTimeout(link.FailFast(context.WithoutCancel(ctx)), limit)
	defer cancel()
	defer func() {
		c.ended = time.Now()
		close(c.done)
	}()
	c.err = errNotAsked
	c.err = b.ping[name](ctx)
	return c.err
}

// errNotAsked is the result of a probe that panicked.
var errNotAsked = errors.New("the dependency could not be probed")

// BackendState is the state of a dependency.
type BackendState string

// The states in GET /health.
const (
	BackendOK      BackendState = "ok"
	BackendAway    BackendState = "unavailable"
	BackendRefused BackendState = "refused" // it responds, but refuses the service's login or a right of it
)

// Lacks sets the stores, as named in Health, in which the service lacks a right that it needs
// for some calls.
func (s *Scheduler) Lacks(stores map[string]bool) {
	for name, lacks := range stores {
		if lacks {
			s.checks.forget(name) // the last good probe may be from before
		}
	}
	s.lacks.Store(&stores)
}

// Health returns the state of every dependency, by name, at most a second old.
func (s *Scheduler) Health(ctx context.Context) map[string]BackendState {
	var mu sync.Mutex
	var wg sync.WaitGroup
	result := make(map[string]BackendState, len(s.checks.ping))
	for name := range s.checks.ping {
		wg.Go(func() {
			err := s.checks.look(ctx, name, pingTrust)
			if err != nil {
				s.log.Debug("a dependency is not available", "dependency", name, "error", err)
			}
			mu.Lock()
			defer mu.Unlock()
			result[name] = backendState(err)
			if lacks := s.lacks.Load(); err == nil && lacks != nil && (*lacks)[name] {
				result[name] = BackendRefused
			}
		})
	}
	wg.Wait()
	return result
}

func backendState(err error) BackendState {
	switch {
	case err == nil:
		return BackendOK
	case errors.Is(err, secrets.ErrDenied), errors.Is(err, registry.ErrDenied), errors.Is(err, cluster.ErrDenied), errors.Is(err, audit.ErrDenied):
		return BackendRefused
	}
	return BackendAway
}

func asRules(err error, rules **jobs.RulesError) bool { return errors.As(err, rules) }

// Reachable returns nil if this replica can serve calls. Admits of running engines need the
// registry, which must have responded within the last second, a session, and keys, which
// are usually cached. A replica that cannot follow the registry is not ready, because it
// refuses lists.
func (s *Scheduler) Reachable(ctx context.Context) error {
	if _, err := s.viewAge(); err != nil {
		return err
	}
	if err := s.checks.look(ctx, "consul", awayTrust); err != nil {
		return err
	}
	if s.replica.Session() == "" {
		return s.replica.Absent()
	}
	return nil
}
