package cli

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// load is a stream of admits of the user "u" through a small load balancer, which calls the
// replicas that are ready one after another and never repeats a call.
type load struct {
	http     *http.Client
	platform string
	cancel   context.CancelFunc
	working  sync.WaitGroup
	began    time.Time
	admits   atomic.Int64
	failed   atomic.Int64
	served   sync.Map // URL to the number of admits

	mu    sync.Mutex
	ready []string // URLs
	next  int
}

// startLoad starts the admits when two replicas are ready. find returns the URLs of those
// that are. The load ends with the test, or by end.
func startLoad(t *testing.T, platform string, perSecond int, find func(context.Context) []string) *load {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64} // connections are used again
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l := &load{http: &http.Client{Transport: transport}, platform: platform, cancel: cancel}
	t.Cleanup(func() {
		cancel()
		l.working.Wait()
		transport.CloseIdleConnections()
	})
	l.working.Go(func() { l.follow(ctx, find) })
	harness.Eventually(t, "both replicas are ready", func() error { return l.serving(2) })
	l.began = time.Now()
	l.working.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l.working.Go(func() { l.admit(context.WithoutCancel(ctx), t) })
		}
	})
	return l
}

// follow finds out which replicas are ready, until ctx ends. A replica gets no more calls
// from its first failure on.
func (l *load) follow(ctx context.Context, find func(context.Context) []string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		ready := find(ctx)
		l.mu.Lock()
		l.ready = ready
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// serving returns an error unless n replicas are ready.
func (l *load) serving(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) != n {
		return fmt.Errorf("%d replicas are ready", len(l.ready))
	}
	return nil
}

// replica returns a client of the replica whose turn it is.
func (l *load) replica() (*client.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) == 0 {
		return nil, fmt.Errorf("no replica is ready")
	}
	l.next++
	return &client.Client{BaseURL: l.ready[l.next%len(l.ready)], PlatformKey: l.platform, HTTP: l.http}, nil
}

func (l *load) admit(ctx context.Context, t *testing.T) {
	c, err := l.replica()
	at := ""
	if err == nil {
		at = c.BaseURL
		var a *client.Admission
		if a, err = c.Admit(ctx, "u", client.AdmitOptions{}); err == nil && !a.Admitted {
			err = fmt.Errorf("not admitted: %s", a.Reason)
		}
	}
	l.admits.Add(1)
	n, _ := l.served.LoadOrStore(at, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	if err != nil && l.failed.Add(1) <= 5 {
		t.Errorf("admit at %s: %v", at, err)
	}
}

// await returns when n more admits were served.
func (l *load) await(t *testing.T, n int64) {
	t.Helper()
	from := l.admits.Load()
	harness.Eventually(t, "admits are served", func() error {
		if more := l.admits.Load() - from; more < n {
			return fmt.Errorf("%d of %d", more, n)
		}
		return nil
	})
}

// end ends the load, and reports failed admits.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.working.Wait()
	rate := float64(l.admits.Load()) / time.Since(l.began).Seconds()
	t.Logf("%d of %d admits failed, %.0f per second", l.failed.Load(), l.admits.Load(), rate)
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d admits failed", l.failed.Load(), l.admits.Load())
	}
}
