package boot

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/septemberai/orch/internal/pause"
)

// TestHedged: a distant engine is reached after one round trip, one whose first SYN was
// lost after the second, and a refused connection fails at once.
func TestHedged(t *testing.T) {
	for name, tc := range map[string]struct {
		dial func(ctx context.Context, turn int) error
		took time.Duration
		want error
	}{
		"Near":    {func(context.Context, int) error { return nil }, 0, nil},
		"Far":     {func(ctx context.Context, _ int) error { pause.For(ctx, 300*time.Millisecond); return ctx.Err() }, 300 * time.Millisecond, nil},
		"Refused": {func(context.Context, int) error { return syscall.ECONNREFUSED }, 0, syscall.ECONNREFUSED},
		"FirstLost": {func(ctx context.Context, turn int) error {
			if turn == 1 {
				<-ctx.Done()
			}
			return ctx.Err()
		}, hedgeAfter, nil},
		"AllLost": {func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, time.Second, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which fails if a goroutine outlives the dial
				var mu sync.Mutex
				var turns int
				var open []net.Conn
				h := &hedged{within: time.Second, dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					mu.Lock()
					turns++
					n := turns
					mu.Unlock()
					if err := tc.dial(ctx, n); err != nil {
						return nil, err
					}
					here, there := net.Pipe()
					mu.Lock()
					defer mu.Unlock()
					open = append(open, there)
					return here, nil
				}}
				began := time.Now()
				conn, err := h.DialContext(t.Context(), "tcp", "engine")
				if took := time.Since(began); took != tc.took || !errors.Is(err, tc.want) || (conn == nil) != (err != nil) {
					t.Errorf("%v, %v after %s, want %v after %s", conn, err, took, tc.want, tc.took)
				}
				if turns > 6 {
					t.Errorf("%d turns", turns)
				}
				if conn != nil {
					_ = conn.Close()
				}
				for _, there := range open { // all except the returned one are closed, too
					_ = there.SetReadDeadline(time.Now().Add(time.Second))
					if _, err := there.Read(make([]byte, 1)); errors.Is(err, context.DeadlineExceeded) || err == nil {
						t.Errorf("a connection stays open: %v", err)
					}
				}
			})
		})
	}
}
