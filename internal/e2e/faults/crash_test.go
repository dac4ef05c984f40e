package faults

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestAnotherReplicaFinishesWhatADeadOneBegan kills a service in the middle of a
// provision, a stop and a destroy; the next one finishes each.
func TestAnotherReplicaFinishesWhatADeadOneBegan(t *testing.T) {
	t.Parallel()
	prefix := "crash/"
	c := harness.StartProcess(t, harness.Shared, prefix)
	p, err := c.RegisterProduct(t.Context(), "crash", "Crash", &client.Policy{AllowedImages: []string{"*"}, MaxEngines: new(3)})
	if err != nil {
		t.Fatal(err)
	}
	c.PlatformKey = p.PlatformAPIKey
	ctx := t.Context()
	stopping, err := c.Provision(ctx, "stopping", "reference-engine.term-delay-20s")
	if err != nil {
		t.Fatal(err)
	}
	destroying, err := c.Provision(ctx, "destroying", "reference-engine.term-delay-20s")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, stopping, stopping.APIKey, "kept")

	var begun sync.WaitGroup
	defer begun.Wait()
	for _, call := range []func(){
		func() { _, _ = c.Provision(ctx, "booting", "reference-engine.slow-boot-10s") },
		func() { _, _ = c.Stop(ctx, "stopping") },
		func() { _, _ = c.Destroy(ctx, "destroying") },
	} {
		begun.Go(call)
	}
	s := harness.OpenStores(t, harness.Shared)
	harness.Eventually(t, "the three operations are under way", func() error {
		pairs, _, err := s.Consul.KV().List(prefix+"engines/", nil)
		if err != nil {
			return err
		}
		all := ""
		for _, p := range pairs {
			all += string(p.Value)
		}
		if n := strings.Count(all, `"op":{`); n != 3 {
			return fmt.Errorf("%d of 3", n)
		}
		return nil
	})
	if err := c.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	next := harness.StartProcess(t, harness.Shared, prefix)
	next.PlatformKey = c.PlatformKey
	harness.Eventually(t, "the operations are finished", func() error {
		if got, err := next.Engine(ctx, "booting"); err != nil || got.Status != "running" {
			return fmt.Errorf("booting: %+v, %w", got, err)
		}
		if got, err := next.Engine(ctx, "stopping"); err != nil || got.Status != "stopped" {
			return fmt.Errorf("stopping: %+v, %w", got, err)
		}
		if _, err := next.Engine(ctx, "destroying"); err == nil {
			return fmt.Errorf("destroying is still there")
		}
		return nil
	})
	if left := s.Traces(destroying.EngineID); len(left) > 0 {
		t.Errorf("left of the destroyed engine: %v", left)
	}
	started, err := next.Start(ctx, "stopping")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, stopping.APIKey).Knows("kept"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"booting", "stopping"} {
		if _, err := next.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	if got := s.Census(prefix); got["rows"] != 0 || got["quota"] != 0 || got["engine-ids/"] != 0 {
		t.Errorf("left: %v", got)
	}
}

// A provision that a crash interrupted is finished by the next replica. A retry with the
// same Idempotency-Key gets its engine and key, not a second engine.
func TestIdempotencyKeyOutlivesACrash(t *testing.T) {
	t.Parallel()
	const prefix = "idempotent-crash/"
	c := harness.StartProcess(t, harness.Shared, prefix)
	ctx := t.Context()
	p, err := c.RegisterProduct(ctx, "crash", "Crash", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	c.PlatformKey = p.PlatformAPIKey
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		_, _ = harness.ProvisionOnce(ctx, c.Client, "key", "u", "reference-engine.slow-boot-10s")
	}()
	s := harness.OpenStores(t, harness.Shared)
	harness.Eventually(t, "the provision is under way", func() error {
		if rows := s.Rows(prefix); len(rows) != 1 {
			return fmt.Errorf("%d rows", len(rows))
		}
		return nil
	})
	if err := c.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-cut
	next := harness.StartProcess(t, harness.Shared, prefix)
	next.PlatformKey = c.PlatformKey
	e, err := harness.ProvisionOnce(ctx, next.Client, "key", "u", "reference-engine.slow-boot-10s")
	if err != nil {
		t.Fatal(err)
	}
	got, err := next.Engine(ctx, "u")
	if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
		t.Fatalf("the retry got %+v, there is %+v, %v", e, got, err)
	}
	harness.Remember(t, e, e.APIKey, "one engine")
	if _, err := next.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if got := s.Census(prefix); got["rows"] != 0 || got["quota"] != 0 {
		t.Errorf("left: %v", got)
	}
}
