package sleep

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/registry"
)

// TestManyFallAsleep makes many engines idle at the same time, and logs what each costs the
// service, Consul and the audit log. They have only rows, and one process that responds for
// all, so the time that Nomad needs to end a process is not included. ORCH_TEST_SLEEPERS
// sets the number.
func TestManyFallAsleep(t *testing.T) {
	t.Parallel()
	many := 300
	if n, err := strconv.Atoi(os.Getenv("ORCH_TEST_SLEEPERS")); err == nil {
		many = n
	}
	const prefix = "many-sleepers/"
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write([]byte(`{"status": "ok"}`))
	}))
	t.Cleanup(server.Close)
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0", "ORCH_LOG_LEVEL": "warn"})
	c := r.Product(t, sleepy)
	productID := harness.ProductOf(t, &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}, c)
	nodes, _, err := s.Nomad.Nodes().List(nil)
	if err != nil || len(nodes) == 0 {
		t.Fatalf("nodes %v, %v", nodes, err)
	}

	// The rows belong to a replica that has ended when they are complete.
	store := registry.New(s.Consul, prefix)
	replica := store.Join(hclog.NewNullLogger())
	joined, leave := context.WithCancel(context.Background())
	left := make(chan struct{})
	go func() { defer close(left); replica.Run(joined) }()
	<-replica.Joined()
	tenant, err := store.Tenant(ctx, productID)
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(16)
	for i := range many {
		group.Go(func() error {
			e := &engine.Row{
				EngineID: fmt.Sprint("sleeper-", i), ProductID: productID, ProductSlug: tenant.Slug, UserID: fmt.Sprint("user-", i),
				// They are not desired to run, because otherwise their missing jobs would
				// be noticed.
				State: engine.Provisioning, Desired: engine.Sleeping, Image: "reference-engine", KeyVersion: 1,
				NodeID: nodes[0].ID, URL: server.URL, CreatedAt: time.Now().UTC(),
			}
			if err := store.Refollowing(ctx, func() error { return store.Claim(ctx, tenant.Product, e, nil) }); err != nil {
				return err
			}
			e.State = engine.Running
			return store.Update(ctx, e)
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	leave()
	<-left

	count := func(state string) (n int) {
		t.Helper()
		var status struct {
			ByStatus map[string]int `json:"by_status"`
		}
		if err := c.Do(ctx, http.MethodGet, "/status", nil, &status); err != nil {
			t.Fatal(err)
		}
		return status.ByStatus[state]
	}
	harness.Eventually(t, "the first falls asleep", func() error {
		if count("sleeping") == 0 {
			return fmt.Errorf("%d run", count("running"))
		}
		return nil
	})
	began, already := time.Now(), count("sleeping")
	harness.Eventually(t, "all sleep", func() error {
		if n := count("sleeping"); n < many {
			return fmt.Errorf("%d of %d do", n, many)
		}
		return nil
	})
	took := time.Since(began)
	t.Logf("%d engines fell asleep in %s, %.0f per second", many-already, took.Round(time.Millisecond), float64(many-already)/took.Seconds())
	if asked.Load() < int64(many) {
		t.Errorf("%d engines were asked whether they are busy", asked.Load())
	}
}
