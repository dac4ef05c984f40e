package admission

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestAdmitReasons(t *testing.T) {
	t.Parallel()
	const prefix = "admit-reasons/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "3"})
	c := r.Product(t, harness.AnyImage)
	ctx := t.Context()
	denied := func(t *testing.T, user string, provision, wake bool, reason string) {
		t.Helper()
		a, err := harness.Admit(ctx, c, user, provision, wake)
		if err != nil || a.Admitted || a.Engine != nil || a.Reason != reason {
			t.Fatalf("got %+v, %v, want %s", a, err, reason)
		}
	}
	denied(t, "u", false, false, "engine_not_found")
	denied(t, "u", false, true, "engine_not_found")
	a, err := harness.Admit(ctx, c, "u", true, false)
	if err != nil || !a.Admitted || a.Engine.APIKey == "" || a.Engine.URL == "" || a.Engine.Status != "running" || a.Reason != "" {
		t.Fatalf("got %+v, %v", a, err)
	}
	harness.Remember(t, a.Engine, a.Engine.APIKey, "admitted")
	again, err := harness.Admit(ctx, c, "u", false, false)
	if err != nil || !again.Admitted || again.Engine.EngineID != a.Engine.EngineID || again.Engine.APIKey != a.Engine.APIKey || again.Engine.EngineVersion == "" {
		t.Fatalf("got %+v, %v", again, err)
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	denied(t, "u", true, true, "engine_stopped")

	// This is the row of an idle engine.
	s := harness.OpenStores(t, harness.Shared)
	s.Edit(prefix, "u", func(row map[string]any) { row["state"], row["desired"] = "sleeping", "sleeping" })
	denied(t, "u", true, false, "engine_sleeping")
	woken, err := harness.Admit(ctx, c, "u", false, true)
	if err != nil || !woken.Admitted || woken.Engine.EngineID != a.Engine.EngineID {
		t.Fatalf("got %+v, %v", woken, err)
	}
	if err := harness.Export(t, woken.Engine, woken.Engine.APIKey).Knows("admitted"); err != nil {
		t.Fatal(err)
	}

	_, err = c.Provision(ctx, "bad", "reference-engine.exit-at-start")
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	denied(t, "bad", true, true, "engine_unhealthy")

	// While another call boots it: without a flag the admit returns at once, with one it
	// returns the result of the boot.
	booted := make(chan error, 1)
	go func() { booted <- harness.ErrOf(c.Provision(ctx, "slow", "reference-engine.slow-boot-2s")) }()
	harness.Eventually(t, "the boot is under way", func() error {
		a, err := harness.Admit(ctx, c, "slow", false, false)
		if err != nil || a.Reason != "engine_provisioning" {
			return fmt.Errorf("%+v, %w", a, err)
		}
		return nil
	})
	joined, err := harness.Admit(ctx, c, "slow", false, true)
	if err != nil || !joined.Admitted {
		t.Fatalf("got %+v, %v", joined, err)
	}
	if err := <-booted; err != nil {
		t.Fatal(err)
	}

	_, err = c.Provision(ctx, "dying", "reference-engine.term-delay-5s")
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- harness.ErrOf(c.Destroy(ctx, "dying")) }()
	harness.Eventually(t, "the destroy is under way", func() error {
		a, err := harness.Admit(ctx, c, "dying", true, true)
		if err != nil || a.Reason != "engine_destroying" {
			return fmt.Errorf("%+v, %w", a, err)
		}
		return nil
	})
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"u", "bad", "slow"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	_, err = harness.Admit(ctx, &client.Client{BaseURL: r.URL, PlatformKey: "pk-sept-nonsense"}, "u", false, false)
	harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
	harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/u/admit", map[string]any{"auto_wake": "yes"}, nil), 400, "INVALID_REQUEST")
	_, err = harness.Admit(ctx, r.Product(t, map[string]any{"max_engines": 0}), "u", true, false)
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
}

// Concurrent admits of new users on two replicas: there is one engine per user, and every
// caller gets it.
func TestConcurrentAdmitsOfNewUsers(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "4"})
	c := all[0].Product(t, nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]map[string]int{} // by user: engine and key
	for i := range 48 {
		user := fmt.Sprint("user-", i%3)
		wg.Go(func() {
			a, err := harness.Admit(t.Context(), harness.At(c, all[i%2]), user, true, i%4 < 2)
			if err != nil || !a.Admitted {
				t.Errorf("%s: %+v, %v", user, a, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if got[user] == nil {
				got[user] = map[string]int{}
			}
			got[user][a.Engine.EngineID+" "+a.Engine.APIKey]++
		})
	}
	wg.Wait()
	for user, engines := range got {
		if len(engines) != 1 {
			t.Errorf("%s was admitted to %d engines", user, len(engines))
		}
		if _, err := c.Destroy(t.Context(), user); err != nil {
			t.Error(err)
		}
	}
}

// An admit of a running engine writes nothing, and after a rotation no replica returns the
// old key.
func TestAdmitHotPath(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{})
	c := all[0].Product(t, nil)
	other := harness.At(c, all[1])
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	first, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the volume pool is at rest", func() error {
		before := modified(s, "replicas-"+t.Name()+"/")
		for range 200 {
			if a, err := harness.Admit(ctx, other, "u", true, true); err != nil || a.Engine.APIKey != first.APIKey {
				t.Fatalf("got %+v, %v", a, err)
			}
		}
		if after := modified(s, "replicas-"+t.Name()+"/"); after != before {
			return fmt.Errorf("200 admits moved the registry from %d to %d", before, after)
		}
		return nil
	})
	for range 5 {
		key, err := c.RotateKey(ctx, "u")
		if err != nil {
			t.Fatal(err)
		}
		a, err := harness.Admit(ctx, other, "u", false, false)
		if err != nil || !a.Admitted || a.Engine.APIKey != key {
			t.Fatalf("after the rotation: %+v, %v", a, err)
		}
	}
	// An admit during a rotation waits for its end.
	rotated := make(chan string, 1)
	go func() {
		key, err := c.RotateKey(ctx, "u")
		if err != nil {
			t.Error(err)
		}
		rotated <- key
	}()
	for done := false; !done; {
		a, err := harness.Admit(ctx, other, "u", false, false)
		if err != nil || !a.Admitted {
			t.Fatalf("during the rotation: %+v, %v", a, err)
		}
		select {
		case <-rotated:
			done = true
		default:
		}
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// modified returns the index of the newest write below a prefix, except for the replicas'
// reports of their admits, which they write every second in any case, and the deployment's
// record, of which the leader writes another epoch every 30 s.
func modified(s *harness.Stores, prefix string) uint64 {
	s.T.Helper()
	pairs, _, err := s.Consul.KV().List(prefix, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	newest := uint64(0)
	for _, p := range pairs {
		if !strings.HasPrefix(p.Key, prefix+"activity/") && p.Key != prefix+"deployment" {
			newest = max(newest, p.ModifyIndex)
		}
	}
	return newest
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 3, map[string]string{"ORCH_VOLUME_POOL": "0"})
	ctx := t.Context()
	c := all[0].Product(t, map[string]any{"rate_limit_rpm": 60})
	const burst, perSecond = 10, 1.0
	began, allowed := time.Now(), 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 90 {
		wg.Go(func() {
			a, err := harness.Admit(ctx, harness.At(c, all[i%3]), "nobody", false, false)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && a.Reason == "engine_not_found":
				allowed++
			default:
				harness.WantCode(t, err, 429, "RATE_LIMITED")
			}
		})
	}
	wg.Wait()
	if most := burst + perSecond*time.Since(began).Seconds() + 1; allowed < burst || float64(allowed) > most {
		t.Errorf("%d allowed, want from %d to %.0f", allowed, burst, most)
	}

	a, err := harness.Admit(ctx, harness.At(c, all[1]), "nobody", false, false)
	var refused *client.Error
	rate := a.Rate // even a denial reports what remains
	if errors.As(err, &refused) {
		rate = refused.Rate
	}
	if rate == nil || rate.Limit != 60 || rate.Remaining > burst || rate.Reset > (burst+1)*time.Second {
		t.Errorf("rate %+v, %v", rate, err)
	}

	// A policy is effective at once, on every replica.
	admin := &client.Client{BaseURL: all[2].URL, AdminKey: harness.AdminKey}
	id := harness.ProductOf(t, admin, c)
	put := func(policy client.Policy) {
		t.Helper()
		if _, err := admin.SetPolicy(ctx, id, policy); err != nil {
			t.Fatal(err)
		}
	}
	put(client.Policy{})
	for _, r := range all {
		if _, err := harness.Admit(ctx, harness.At(c, r), "nobody", false, false); err != nil {
			t.Errorf("without a limit: %v", err)
		}
	}
	put(client.Policy{RateLimitRPM: new(0)})
	for _, r := range all {
		harness.WantCode(t, harness.ErrOf(harness.Admit(ctx, harness.At(c, r), "nobody", false, false)), 429, "RATE_LIMITED")
	}
}
