package cli

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestRollingUpdateFailsNoCall: behind a load balancer that follows /ready, replicas are
// terminated and replaced under 200 admits per second, and no call fails.
func TestRollingUpdateFailsNoCall(t *testing.T) {
	const prefix, perSecond = "drain/", 200
	var mu sync.Mutex
	urls := map[string]bool{}
	start := func() *harness.Process {
		p := harness.StartProcess(t, harness.Shared, prefix, "ORCH_DRAIN_DELAY_S=10", "ORCH_LOG_LEVEL=info")
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

	l := startLoad(t, p.PlatformAPIKey, perSecond, func(ctx context.Context) (ready []string) {
		mu.Lock()
		list := slices.Collect(maps.Keys(urls))
		mu.Unlock()
		var asking sync.WaitGroup
		var found sync.Mutex
		for _, url := range list {
			asking.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				if (&client.Client{BaseURL: url}).Ready(ctx) == nil {
					found.Lock()
					defer found.Unlock()
					ready = append(ready, url)
				}
			})
		}
		asking.Wait()
		return ready
	})
	for i, old := range replicas {
		l.await(t, perSecond)
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
		l.await(t, perSecond)
		replicas[i] = start()
		harness.Eventually(t, "both replicas are ready", func() error { return l.serving(2) })
	}
	l.await(t, perSecond)
	l.end(t)
	for _, r := range replicas {
		if n, ok := l.served.Load(r.BaseURL); !ok || n.(*atomic.Int64).Load() == 0 {
			t.Errorf("the new replica %s served nothing", r.BaseURL)
		}
	}
}
