package e2e

import (
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

// awaitWarm waits until so many warm engines run.
func (s *stores) awaitWarm(r *replica, n int) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, fmt.Sprint(n, " warm engines run"), func() error {
		if got := r.Scheduler.WarmEngines(); got != n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

func TestWarmEngines(t *testing.T) {
	t.Parallel()
	const prefix = "warm/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_WARM_POOL": "2", "ORCH_VOLUME_POOL": "4"})
	s, ctx := openStores(t, shared), t.Context()
	c := r.product(t, map[string]any{"max_engines": 6})
	s.awaitWarm(r, 2)
	if list, err := c.Engines(ctx, client.EngineFilter{}); err != nil || list.Total != 0 {
		t.Fatalf("a product sees engines that are nobody's: %+v, %v", list, err)
	}

	// A burst that is larger than the pool: partly warm, partly cold, each its
	// own.
	var wg sync.WaitGroup
	engines := make([]*client.Engine, 6)
	for i := range engines {
		wg.Go(func() {
			began := time.Now()
			e, err := c.Provision(ctx, fmt.Sprint("u", i), "")
			if err != nil {
				t.Error(err)
				return
			}
			t.Logf("provisioned after %s", time.Since(began).Round(time.Millisecond))
			engines[i] = e
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	_, err := c.Provision(ctx, "one too many", "")
	wantCode(t, err, 429, "QUOTA_EXCEEDED")
	_, err = c.Provision(ctx, "u0", "")
	wantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
	seen := map[string]bool{}
	for i, e := range engines {
		if seen[e.EngineID] || seen[e.URL] {
			t.Errorf("two users got %s at %s", e.EngineID, e.URL)
		}
		seen[e.EngineID], seen[e.URL] = true, true
		remember(t, e, e.APIKey, fmt.Sprint("brain of ", i))
		if brain := export(t, e, e.APIKey); len(brain.Memories) != 1 {
			t.Errorf("the brain of a new engine holds %+v", brain.Memories)
		}
	}
	entries, _ := auditLog(t, c, "?action=provision")
	warm := 0
	for _, e := range entries {
		if e.Metadata["warm"] == true {
			warm++
		}
	}
	if warm < 2 {
		t.Errorf("%d of the provisions were warm", warm)
	}
	s.awaitWarm(r, 2)

	// The job of an engine that was warm says whose it is, and its process is
	// the one that waited.
	eventually(t, 30*time.Second, "the jobs are labelled", func() error {
		for i, e := range engines {
			job, _, err := s.nomad.Jobs().Info("engine-"+e.EngineID, nil)
			if err != nil {
				return err
			}
			if user := fmt.Sprintf("u%d", i); job.UI == nil || !strings.Contains(job.UI.Description, user) {
				return fmt.Errorf("the job of %s says %+v", user, job.UI)
			}
		}
		return nil
	})
	for i, e := range engines {
		user := fmt.Sprint("u", i)
		if runs := export(t, e, e.APIKey).Runs; len(runs) != 1 {
			t.Errorf("%s was restarted: %+v", user, runs)
		}
		if key, err := c.RotateKey(ctx, user); err != nil || key == e.APIKey {
			t.Errorf("rotate: %v", err)
		}
		if _, err := c.Stop(ctx, user); err != nil {
			t.Error(err)
		}
		again, err := c.Start(ctx, user)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Engine(ctx, user)
		if err != nil {
			t.Fatal(err)
		}
		if err := export(t, again, got.APIKey).knows(fmt.Sprint("brain of ", i)); err != nil {
			t.Error(err)
		}
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
		if left := s.traces(e.EngineID); len(left) > 0 {
			t.Errorf("left of %s: %v", user, left)
		}
	}
	if got := s.census(prefix); got["rows"] != 2 || got["quota"] != 0 {
		t.Errorf("got %v, want the two warm engines alone", got)
	}
}

// A warm engine whose process died is replaced, and never handed out; a policy
// adds warm engines of its own and takes them away again.
func TestWarmEnginesAreReplaced(t *testing.T) {
	t.Parallel()
	const prefix = "warm-replaced/"
	r := startService(t, shared, with(soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=3"))
	s, ctx := openStores(t, shared), t.Context()
	admin := &client.Client{BaseURL: r.url, AdminKey: adminKey}
	p, err := admin.RegisterProduct(ctx, "warm", "Warm", policyOf(t, map[string]any{"warm_pool": 1, "engine_image": "reference-engine.v2", "memory_mb": 40}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.url, PlatformKey: p.PlatformAPIKey}
	s.awaitWarm(r, 1)
	jobs := func() (ids []string) {
		list, _, err := s.nomad.Jobs().PrefixList("engine-")
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range list {
			if info, _, err := s.nomad.Jobs().Info(j.ID, nil); err == nil && info.Meta["deployment"] == "warm-replaced" {
				ids = append(ids, j.ID)
			}
		}
		return ids
	}
	first := jobs()
	if len(first) != 1 {
		t.Fatalf("jobs: %v", first)
	}
	var waiting struct{ URL string }
	rows, _, err := s.consul.KV().List(prefix+"engines/", nil)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if err := json.Unmarshal(rows[0].Value, &waiting); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.nomad.Jobs().Deregister(first[0], false, nil); err != nil { // an accident
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "its process is gone", func() error {
		if _, err := engineCall(ctx, &client.Engine{URL: waiting.URL}, "", http.MethodGet, "/health", nil, nil); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
	e, err := c.Provision(ctx, "u", "") // at once, whatever anybody has seen of that
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "alive")
	if "engine-"+e.EngineID == first[0] {
		t.Error("an engine that was ended was handed out")
	}
	eventually(t, 60*time.Second, "the dead one is replaced", func() error {
		now := jobs()
		if len(now) != 2 || now[0] == first[0] || now[1] == first[0] {
			return fmt.Errorf("jobs: %v", now)
		}
		return nil
	})
	s.awaitWarm(r, 1)
	if _, err := admin.SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	s.awaitWarm(r, 0)
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "nothing is left", func() error {
		if got := s.census(prefix); got["rows"] != 0 || got["jobs"] != 0 || got["keys"] != 0 || got["variables"] != 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}
