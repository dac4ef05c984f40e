package scheduler

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestNeedAsksOnce: while a dependency does not answer, all who need it have an error
// within one question's time limit, however many they are and although some hang up; and
// it is needed again as soon as it is back.
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
		// 16 at a time, as at the gate of a product.
		turns := make(chan struct{}, firstBoots)
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
					t.Error("a dependency that does not answer is there")
				}
			})
		}
		calls.Wait()
		if took := time.Since(began); took > pingTimeout+time.Second {
			t.Errorf("500 calls took %s", took)
		}
		if n := asked.Load(); n > 2 {
			t.Errorf("it was asked %d times", n)
		}
		back.Store(true)
		time.Sleep(awayTrust) // in the test's own time
		if err := b.need(t.Context(), "nomad", "audit"); err != nil {
			t.Errorf("it is back: %v", err)
		}
		back.Store(false)
		if err := b.need(t.Context(), "audit"); err != nil {
			t.Errorf("an answer of just now is not trusted: %v", err)
		}
		if err := b.check(t.Context(), "audit"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it was not asked now: %v", err)
		}
	})
}
