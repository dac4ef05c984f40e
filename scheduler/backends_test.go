package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/secrets"
)

// However many callers there are, a dependency gets no concurrent requests, and only one per
// second from callers that only check its state.
func TestBackendsAreAskedOnce(t *testing.T) {
	for name, answer := range map[string]error{"ok": nil, "away": errors.New("away")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked, atOnce atomic.Int32
				b := &backendChecks{ping: map[string]func(context.Context) error{"x": func(ctx context.Context) error {
					asked.Add(1)
					if atOnce.Add(1) > 1 {
						t.Error("it gets two concurrent requests")
					}
					defer atOnce.Add(-1)
					select {
					case <-time.After(100 * time.Millisecond):
						return answer
					case <-ctx.Done():
						return ctx.Err()
					}
				}}}
				var callers sync.WaitGroup
				began := time.Now()
				for range 20 {
					callers.Go(func() {
						for time.Since(began) < 5*time.Second {
							if err := b.look(t.Context(), "x", pingTrust); !errors.Is(err, answer) {
								t.Errorf("got %v, want %v", err, answer)
							}
							time.Sleep(7 * time.Millisecond)
						}
					})
				}
				callers.Wait()
				if n := asked.Load(); n < 4 || n > 6 {
					t.Errorf("it got %d requests in 5 s, want one per second", n)
				}
			})
		})
	}
}

// The end of the first caller is not the result for the others; and an operation requests
// again after an error, because the dependency may be back.
func TestBackendsAnswerAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := errors.New("away")
		b := &backendChecks{ping: map[string]func(context.Context) error{"x": func(ctx context.Context) error {
			time.Sleep(100 * time.Millisecond)
			return errors.Join(ctx.Err(), answer)
		}}}
		first, leave := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		callers.Go(func() { _ = b.look(first, "x", pingTrust) })
		synctest.Wait()
		callers.Go(func() {
			if err := b.look(t.Context(), "x", pingTrust); !errors.Is(err, answer) || errors.Is(err, context.Canceled) {
				t.Errorf("the second caller got %v", err)
			}
		})
		leave()
		callers.Wait()
		answer = nil
		if err := b.look(t.Context(), "x", pingTrust); err == nil {
			t.Error("an error is not kept for a second")
		}
		time.Sleep(awayTrust)
		if err := b.need(t.Context(), "x"); err != nil {
			t.Errorf("an operation is refused by an old error: %v", err)
		}
	})
}

func TestBackendState(t *testing.T) {
	for _, c := range []struct {
		err  error
		want BackendState
	}{
		{nil, BackendOK},
		{fmt.Errorf("%w: x", secrets.ErrDenied), BackendRefused},
		{fmt.Errorf("%w: %w", registry.ErrUnavailable, registry.ErrDenied), BackendRefused},
		{fmt.Errorf("%w: x", cluster.ErrDenied), BackendRefused},
		{fmt.Errorf("%w: %w", audit.ErrUnavailable, audit.ErrDenied), BackendRefused},
		{fmt.Errorf("%w: x", secrets.ErrUnavailable), BackendAway},
		{fmt.Errorf("%w: x", registry.ErrUnavailable), BackendAway},
		{context.DeadlineExceeded, BackendAway},
	} {
		if got := backendState(c.err); got != c.want {
			t.Errorf("%v is %s, want %s", c.err, got, c.want)
		}
	}
}

// TestNeedAsksOnce: while a dependency does not respond, every caller that needs it has an
// error within the time limit of one request, however many callers there are and although
// some cancel; and the dependency is used again as soon as it is back.
func TestNeedAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var back atomic.Bool
		b := backendChecks{ping: map[string]func(context.Context) error{
			"audit": func(ctx context.Context) error {
				asked.Add(1)
				if back.Load() {
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			},
			"nomad": func(context.Context) error { return nil },
		}}
		began := time.Now()
		// 16 concurrently, the initial limit of a product's concurrent boots.
		turns := make(chan struct{}, boot.FirstBoots)
		var calls sync.WaitGroup
		for i := range 500 {
			calls.Go(func() {
				turns <- struct{}{}
				defer func() { <-turns }()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%5 == 0 {
					cancel()
				}
				if err := b.need(ctx, "nomad", "audit"); err == nil {
					t.Error("a dependency that does not respond counts as available")
				}
			})
		}
		calls.Wait()
		if took := time.Since(began); took > auditTimeout+time.Second {
			t.Errorf("500 calls took %s", took)
		}
		if n := asked.Load(); n > 2 {
			t.Errorf("it got %d requests", n)
		}
		back.Store(true)
		time.Sleep(awayTrust) // in the test's own time
		if err := b.need(t.Context(), "nomad", "audit"); err != nil {
			t.Errorf("it is back: %v", err)
		}
		back.Store(false)
		if err := b.need(t.Context(), "audit"); err != nil {
			t.Errorf("a new response does not count: %v", err)
		}
	})
}

// TestNeedOfKnown: while the last responses count, no request is started.
func TestNeedOfKnown(t *testing.T) {
	var asked atomic.Int64
	ping := func(context.Context) error { asked.Add(1); return nil }
	synctest.Test(t, func(t *testing.T) { // in which no time passes
		b := backendChecks{ping: map[string]func(context.Context) error{"nomad": ping, "vault": ping, "audit": ping}}
		ctx := t.Context()
		need := func() {
			if err := b.need(ctx, "nomad", "vault", "audit"); err != nil {
				t.Error(err)
			}
		}
		need()
		if n := asked.Load(); n != 3 {
			t.Errorf("three dependencies got %d requests", n)
		}
		if n := testing.AllocsPerRun(100, need); n > 2 { // a goroutine for each takes more
			t.Errorf("what is known took %g allocations", n)
		}
		if n := asked.Load(); n != 3 {
			t.Errorf("they got %d requests although their responses count", n)
		}
	})
}
