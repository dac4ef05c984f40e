package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

func admit(ctx context.Context, c *client.Client, user string, provision, wake bool) (*client.Admission, error) {
	return c.Admit(ctx, user, client.AdmitOptions{AutoProvision: provision, AutoWake: wake})
}

// startReplicas runs n services on one registry.
func startReplicas(t *testing.T, n int, vars map[string]string) []*replica {
	t.Helper()
	vars["ORCH_CONSUL_PREFIX"] = "replicas-" + t.Name() + "/"
	var all []*replica
	for range n {
		all = append(all, startService(t, shared, vars))
	}
	return all
}

// at is the same product's client at another replica.
func at(c *client.Client, r *replica) *client.Client {
	return &client.Client{BaseURL: r.url, PlatformKey: c.PlatformKey, AdminKey: c.AdminKey}
}

func TestAdmitReasons(t *testing.T) {
	t.Parallel()
	const prefix = "admit-reasons/"
	r := startService(t, shared, map[string]string{"ORCH_BOOT_TIMEOUT_S": "20", "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "3"})
	c := r.product(t, anyImage)
	ctx := t.Context()
	denied := func(t *testing.T, user string, provision, wake bool, reason string) {
		t.Helper()
		a, err := admit(ctx, c, user, provision, wake)
		if err != nil || a.Admitted || a.Engine != nil || a.Reason != reason {
			t.Fatalf("got %+v, %v, want %s", a, err, reason)
		}
	}
	denied(t, "u", false, false, "engine_not_found")
	denied(t, "u", false, true, "engine_not_found")
	a, err := admit(ctx, c, "u", true, false)
	if err != nil || !a.Admitted || a.Engine.APIKey == "" || a.Engine.URL == "" || a.Engine.Status != "running" || a.Reason != "" {
		t.Fatalf("got %+v, %v", a, err)
	}
	remember(t, a.Engine, a.Engine.APIKey, "admitted")
	again, err := admit(ctx, c, "u", false, false)
	if err != nil || !again.Admitted || again.Engine.EngineID != a.Engine.EngineID || again.Engine.APIKey != a.Engine.APIKey || again.Engine.EngineVersion == "" {
		t.Fatalf("got %+v, %v", again, err)
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	denied(t, "u", true, true, "engine_stopped")

	// As an idle engine's row will say.
	s := openStores(t, shared)
	s.edit(prefix, "u", func(row map[string]any) { row["state"], row["desired"] = "sleeping", "sleeping" })
	denied(t, "u", true, false, "engine_sleeping")
	woken, err := admit(ctx, c, "u", false, true)
	if err != nil || !woken.Admitted || woken.Engine.EngineID != a.Engine.EngineID {
		t.Fatalf("got %+v, %v", woken, err)
	}
	if err := export(t, woken.Engine, woken.Engine.APIKey).knows("admitted"); err != nil {
		t.Fatal(err)
	}

	_, err = c.Provision(ctx, "bad", "reference-engine.exit-at-start")
	wantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	denied(t, "bad", true, true, "engine_unhealthy")

	// While another call boots it: without a flag the answer is at once, with
	// one it is the boot's.
	booted := make(chan error, 1)
	go func() { booted <- second(c.Provision(ctx, "slow", "reference-engine.slow-boot-2s")) }()
	eventually(t, "the boot is under way", func() error {
		a, err := admit(ctx, c, "slow", false, false)
		if err != nil || a.Reason != "engine_provisioning" {
			return fmt.Errorf("%+v, %w", a, err)
		}
		return nil
	})
	joined, err := admit(ctx, c, "slow", false, true)
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
	go func() { gone <- second(c.Destroy(ctx, "dying")) }()
	eventually(t, "the destroy is under way", func() error {
		a, err := admit(ctx, c, "dying", true, true)
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
	_, err = admit(ctx, &client.Client{BaseURL: r.url, PlatformKey: "pk-sept-nonsense"}, "u", false, false)
	wantCode(t, err, 401, "INVALID_PLATFORM_KEY")
	wantCode(t, c.Do(ctx, http.MethodPost, "/engines/u/admit", map[string]any{"auto_wake": "yes"}, nil), 400, "INVALID_REQUEST")
	_, err = admit(ctx, r.product(t, map[string]any{"max_engines": 0}), "u", true, false)
	wantCode(t, err, 429, "QUOTA_EXCEEDED")
}

// edit changes an engine's row in the registry itself.
func (s *stores) edit(prefix, user string, change func(map[string]any)) {
	s.t.Helper()
	pairs, _, err := s.consul.KV().List(prefix+"engines/", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pairs {
		row := map[string]any{}
		if err := json.Unmarshal(p.Value, &row); err != nil {
			s.t.Fatal(err)
		}
		if row["user_id"] != user {
			continue
		}
		change(row)
		if p.Value, err = json.Marshal(row); err != nil {
			s.t.Fatal(err)
		}
		if err := s.write(prefix, p); err != nil {
			s.t.Fatalf("row of %s: %v", user, err)
		}
		return
	}
	s.t.Fatalf("no row of %s", user)
}

// Concurrent admits of new users on two replicas: one engine each, and every
// caller gets it.
func TestConcurrentAdmitsOfNewUsers(t *testing.T) {
	t.Parallel()
	all := startReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "4"})
	c := all[0].product(t, nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]map[string]int{} // by user: engine and key
	for i := range 48 {
		user := fmt.Sprint("user-", i%3)
		wg.Go(func() {
			a, err := admit(t.Context(), at(c, all[i%2]), user, true, i%4 < 2)
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

// An admit of a running engine writes nothing, and after a rotation no replica
// hands out the old key.
func TestAdmitHotPath(t *testing.T) {
	t.Parallel()
	all := startReplicas(t, 2, map[string]string{})
	c := all[0].product(t, nil)
	other := at(c, all[1])
	ctx, s := t.Context(), openStores(t, shared)
	first, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume pool is at rest", func() error {
		before := s.modified("replicas-" + t.Name() + "/")
		for range 200 {
			if a, err := admit(ctx, other, "u", true, true); err != nil || a.Engine.APIKey != first.APIKey {
				t.Fatalf("got %+v, %v", a, err)
			}
		}
		if after := s.modified("replicas-" + t.Name() + "/"); after != before {
			return fmt.Errorf("200 admits moved the registry from %d to %d", before, after)
		}
		return nil
	})
	for range 5 {
		key, err := c.RotateKey(ctx, "u")
		if err != nil {
			t.Fatal(err)
		}
		a, err := admit(ctx, other, "u", false, false)
		if err != nil || !a.Admitted || a.Engine.APIKey != key {
			t.Fatalf("after the rotation: %+v, %v", a, err)
		}
	}
	// An admit that comes during a rotation waits for it.
	rotated := make(chan string, 1)
	go func() {
		key, err := c.RotateKey(ctx, "u")
		if err != nil {
			t.Error(err)
		}
		rotated <- key
	}()
	for done := false; !done; {
		a, err := admit(ctx, other, "u", false, false)
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

// modified is the index of the newest write below a prefix, but for what the
// replicas tell of their admits, every second and whatever those were.
func (s *stores) modified(prefix string) uint64 {
	s.t.Helper()
	pairs, _, err := s.consul.KV().List(prefix, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	newest := uint64(0)
	for _, p := range pairs {
		if !strings.HasPrefix(p.Key, prefix+"activity/") {
			newest = max(newest, p.ModifyIndex)
		}
	}
	return newest
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	all := startReplicas(t, 3, map[string]string{"ORCH_VOLUME_POOL": "0"})
	ctx := t.Context()
	c := all[0].product(t, map[string]any{"rate_limit_rpm": 60})
	const burst, perSecond = 10, 1.0
	began, allowed := time.Now(), 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 90 {
		wg.Go(func() {
			a, err := admit(ctx, at(c, all[i%3]), "nobody", false, false)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && a.Reason == "engine_not_found":
				allowed++
			default:
				wantCode(t, err, 429, "RATE_LIMITED")
			}
		})
	}
	wg.Wait()
	if most := burst + perSecond*time.Since(began).Seconds() + 1; allowed < burst || float64(allowed) > most {
		t.Errorf("%d allowed, want from %d to %.0f", allowed, burst, most)
	}

	a, err := admit(ctx, at(c, all[1]), "nobody", false, false)
	var refused *client.Error
	rate := a.Rate // refused or not, the answer tells what is left
	if errors.As(err, &refused) {
		rate = refused.Rate
	}
	if rate == nil || rate.Limit != 60 || rate.Remaining > burst || rate.Reset > (burst+1)*time.Second {
		t.Errorf("rate %+v, %v", rate, err)
	}

	// A policy holds at once, on every replica.
	admin := &client.Client{BaseURL: all[2].url, AdminKey: adminKey}
	id := productOf(t, admin, c)
	put := func(policy client.Policy) {
		t.Helper()
		if _, err := admin.SetPolicy(ctx, id, policy); err != nil {
			t.Fatal(err)
		}
	}
	put(client.Policy{})
	for _, r := range all {
		if _, err := admit(ctx, at(c, r), "nobody", false, false); err != nil {
			t.Errorf("without a limit: %v", err)
		}
	}
	put(client.Policy{RateLimitRPM: new(0)})
	for _, r := range all {
		wantCode(t, second(admit(ctx, at(c, r), "nobody", false, false)), 429, "RATE_LIMITED")
	}
}

// productOf finds the id of the product that has a platform key, by its slug in
// the audit log.
func productOf(t *testing.T, admin, c *client.Client) string {
	t.Helper()
	list, err := admin.Products(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Products) != 1 {
		t.Fatalf("%d products, want one", len(list.Products))
	}
	return list.Products[0].ProductID
}
