package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// balancer is a small load balancer: it calls the replicas that are ready one after
// another, and never repeats a call.
type balancer struct {
	http     *http.Client
	platform string
	mu       sync.Mutex
	ready    []string // URLs
	next     int
}

// follow asks /ready of every replica until ctx ends. A replica gets no more calls from its
// first failure on.
func (b *balancer) follow(ctx context.Context, urls func() []string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		var ready []string
		for _, url := range urls() {
			asking, cancel := context.WithTimeout(ctx, time.Second)
			err := (&client.Client{BaseURL: url}).Ready(asking)
			cancel()
			if err == nil {
				ready = append(ready, url)
			}
		}
		b.mu.Lock()
		b.ready = ready
		b.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// count returns the number of ready replicas.
func (b *balancer) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ready)
}

func (b *balancer) admit(ctx context.Context, user string) (at string, err error) {
	b.mu.Lock()
	if len(b.ready) == 0 {
		b.mu.Unlock()
		return "", fmt.Errorf("no replica is ready")
	}
	b.next++
	at = b.ready[b.next%len(b.ready)]
	b.mu.Unlock()
	a, err := (&client.Client{BaseURL: at, PlatformKey: b.platform, HTTP: b.http}).Admit(ctx, user, client.AdmitOptions{})
	if err == nil && !a.Admitted {
		err = fmt.Errorf("not admitted: %s", a.Reason)
	}
	return at, err
}

// TestRollingUpdateFailsNoCall: behind a load balancer that follows /ready, replicas are
// terminated and replaced under 200 admits per second, and no call fails.
func TestRollingUpdateFailsNoCall(t *testing.T) {
	const prefix, perSecond = "drain/", 200
	var mu sync.Mutex
	urls := map[string]bool{}
	start := func() *harness.Process {
		p := harness.StartProcess(t, harness.Shared, prefix, "ORCH_DRAIN_DELAY_S=3", "ORCH_LOG_LEVEL=info")
		mu.Lock()
		defer mu.Unlock()
		urls[p.BaseURL] = true
		return p
	}
	replicas := []*harness.Process{start(), start()}
	p, err := replicas[0].RegisterProduct(t.Context(), "drain", "Drain", harness.PolicyOf(t, map[string]any{"rate_limit_rpm": 1000000}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&client.Client{BaseURL: replicas[0].BaseURL, PlatformKey: p.PlatformAPIKey}).Provision(t.Context(), "u", ""); err != nil {
		t.Fatal(err)
	}

	transport := &http.Transport{MaxIdleConnsPerHost: 64} // connections are used again
	defer transport.CloseIdleConnections()
	b := &balancer{http: &http.Client{Transport: transport}, platform: p.PlatformAPIKey}
	ctx, stop := context.WithCancel(t.Context())
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	working.Go(func() {
		b.follow(ctx, func() (list []string) {
			mu.Lock()
			defer mu.Unlock()
			for url := range urls {
				list = append(list, url)
			}
			return list
		})
	})
	var admits, failed atomic.Int64
	var served sync.Map // URL to the number of admits
	bothReady := func() error {
		if n := b.count(); n != 2 {
			return fmt.Errorf("%d replicas are ready", n)
		}
		return nil
	}
	harness.Eventually(t, "both replicas are ready", bothReady)
	working.Go(func() {
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			working.Go(func() {
				at, err := b.admit(context.WithoutCancel(ctx), "u")
				admits.Add(1)
				n, _ := served.LoadOrStore(at, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				if err != nil && failed.Add(1) <= 5 {
					t.Errorf("admit at %s: %v", at, err)
				}
			})
		}
	})
	// load waits until n more admits were served.
	load := func(n int64) {
		from := admits.Load()
		harness.Eventually(t, "admits are served", func() error {
			if more := admits.Load() - from; more < n {
				return fmt.Errorf("%d of %d", more, n)
			}
			return nil
		})
	}
	began := time.Now()
	for i, old := range replicas {
		load(perSecond)
		old.Terminate(t)
		if code := old.Cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("a replica ended with code %d", code)
		}
		if !strings.Contains(old.Log.String(), "still serving") {
			t.Error("the replica did not drain")
		}
		mu.Lock()
		delete(urls, old.BaseURL)
		mu.Unlock()
		load(perSecond)
		replicas[i] = start()
		harness.Eventually(t, "both replicas are ready", bothReady)
	}
	load(perSecond)
	stop()
	working.Wait()
	rate := float64(admits.Load()) / time.Since(began).Seconds()
	t.Logf("%d of %d admits failed, %.0f per second", failed.Load(), admits.Load(), rate)
	if failed.Load() > 0 {
		t.Errorf("%d of %d admits failed", failed.Load(), admits.Load())
	}
	if rate < perSecond/2 {
		t.Errorf("%.0f admits per second are no load", rate)
	}
	for _, r := range replicas {
		if n, ok := served.Load(r.BaseURL); !ok || n.(*atomic.Int64).Load() == 0 {
			t.Errorf("the new replica %s served nothing", r.BaseURL)
		}
	}
}
