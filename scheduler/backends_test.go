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

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// However many ask, a dependency gets one question at a time, and one per second of
// those who only want to know.
func TestBackendsAreAskedOnce(t *testing.T) {
	for name, answer := range map[string]error{"ok": nil, "away": errors.New("away")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked, atOnce atomic.Int32
				b := &backendChecks{ping: map[string]func(context.Context) error{"x": func(ctx context.Context) error {
					asked.Add(1)
					if atOnce.Add(1) > 1 {
						t.Error("it is asked twice at a time")
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
							if err := b.ask(t.Context(), "x", true); !errors.Is(err, answer) {
								t.Errorf("got %v, want %v", err, answer)
							}
							time.Sleep(7 * time.Millisecond)
						}
					})
				}
				callers.Wait()
				if n := asked.Load(); n < 4 || n > 6 {
					t.Errorf("it was asked %d times in 5 s, want once a second", n)
				}
			})
		})
	}
}

// The first caller's going is no answer for the others; and an operation asks again
// after an error, for the dependency may be back.
func TestBackendsAnswerAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := errors.New("away")
		b := &backendChecks{ping: map[string]func(context.Context) error{"x": func(ctx context.Context) error {
			time.Sleep(100 * time.Millisecond)
			return errors.Join(ctx.Err(), answer)
		}}}
		first, leave := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		callers.Go(func() { _ = b.ask(first, "x", true) })
		synctest.Wait()
		callers.Go(func() {
			if err := b.ask(t.Context(), "x", true); !errors.Is(err, answer) || errors.Is(err, context.Canceled) {
				t.Errorf("the second caller got %v", err)
			}
		})
		leave()
		callers.Wait()
		answer = nil
		if err := b.ask(t.Context(), "x", true); err == nil {
			t.Error("an error is not kept for a second")
		}
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
		{fmt.Errorf("%w: x", cluster.ErrRejected), BackendRefused},
		{fmt.Errorf("%w: x", secrets.ErrUnavailable), BackendAway},
		{fmt.Errorf("%w: x", registry.ErrUnavailable), BackendAway},
		{context.DeadlineExceeded, BackendAway},
	} {
		if got := backendState(c.err); got != c.want {
			t.Errorf("%v is %s, want %s", c.err, got, c.want)
		}
	}
}
