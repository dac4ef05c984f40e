package pools

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// warmKinds returns the admin's figures of warm engines.
func warmKinds(r *harness.Replica, t *testing.T) []client.WarmPool {
	t.Helper()
	st, err := r.Admin().Whole(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.WarmPools
}

// A burst that is larger than the pool: as many engines as there are responsive warm ones
// are warm, the others are cold, and each user gets a different one; then the pool is
// refilled.
func TestWarmBurst(t *testing.T) {
	t.Parallel()
	const prefix, pool, burst = "warm-burst/", 3, 8
	// The engines boot slowly, so that none that is created meanwhile is used.
	r := harness.StartService(t, harness.Shared, map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_WARM_POOL": fmt.Sprint(pool), "ORCH_VOLUME_POOL": "4", "ORCH_ENGINE_IMAGE": "reference-engine.slow-boot-2s",
	})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	s.AwaitWarm(r, pool)
	unclaimed := s.WarmRows(prefix)
	kinds := warmKinds(r, t)
	if len(kinds) != 1 || kinds[0].Image != "reference-engine.slow-boot-2s" || kinds[0].Wanted != pool || kinds[0].Ready != pool || kinds[0].Making != 0 || kinds[0].Error != "" {
		t.Fatalf("the admin sees %+v", kinds)
	}
	waited := map[string]bool{}
	for _, row := range unclaimed {
		waited[row.EngineID] = true
		s.Described(row.EngineID, "Warm, unclaimed", "reference-engine.slow-boot-2s", kinds[0].Fingerprint)
	}
	engines := make([]*client.Engine, burst)
	var wg sync.WaitGroup
	for i := range engines {
		wg.Go(func() {
			e, err := c.Provision(ctx, fmt.Sprint("u", i), "")
			if err != nil {
				t.Error(err)
				return
			}
			engines[i] = e
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	seen, warm := map[string]bool{}, 0
	for i, e := range engines {
		if seen[e.EngineID] || seen[e.URL] || seen[e.APIKey] {
			t.Errorf("two users got %s at %s", e.EngineID, e.URL)
		}
		seen[e.EngineID], seen[e.URL], seen[e.APIKey] = true, true, true
		harness.Remember(t, e, e.APIKey, "alive")
		if waited[e.EngineID] {
			warm++
			s.Described(e.EngineID, fmt.Sprint("u", i))
		}
	}
	audited := map[bool]int{}
	for _, row := range r.Audited(t, "provision") {
		if row.Actor != "system" {
			audited[row.Metadata["warm"] == true]++
		}
	}
	// A warm engine that does not respond to its probe at once, on a busy machine, stays in
	// the pool.
	if warm == 0 || audited[true] != warm || audited[false] != burst-warm {
		t.Errorf("%d of %d were warm, and the audit log has %v", warm, burst, audited)
	}
	s.AwaitWarm(r, pool)
	still := 0
	for _, row := range s.WarmRows(prefix) {
		if seen[row.EngineID] {
			t.Errorf("%s is back in the pool", row.EngineID)
		}
		if waited[row.EngineID] {
			still++
		}
	}
	if still != pool-warm {
		t.Errorf("%d were warm and %d wait on, of %d", warm, still, pool)
	}
	for i := range engines {
		if _, err := c.Destroy(ctx, fmt.Sprint("u", i)); err != nil {
			t.Error(err)
		}
	}
	s.AwaitWarm(r, pool) // used engines do not come back
}

// A kind that cannot be created is reported, with the reason and the time of the next
// attempt. A change of the policy retires the engines of the previous kind.
func TestWarmKindsFollowThePolicy(t *testing.T) {
	t.Parallel()
	const prefix = "warm-kinds/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "2"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	admin := r.Admin()
	policy := func(fields map[string]any) *client.Policy { return harness.PolicyOf(t, fields) }
	p, err := admin.RegisterProduct(ctx, "kinds", "Kinds", policy(map[string]any{"warm_pool": 1}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	known := map[string]bool{}
	for _, fields := range []map[string]any{
		{"warm_pool": 1},
		{"warm_pool": 1, "memory_mb": 40},
		{"warm_pool": 1, "memory_mb": 40, "cpu_mhz": 20},
		{"warm_pool": 1, "engine_image": "reference-engine.v2"},
	} {
		if _, err := admin.SetPolicy(ctx, p.ProductID, *policy(fields)); err != nil {
			t.Fatal(err)
		}
		var now client.WarmPool
		harness.Eventually(t, fmt.Sprint("the one warm engine is of ", fields), func() error {
			kinds, rows := warmKinds(r, t), s.WarmRows(prefix)
			if len(kinds) != 1 || kinds[0].Ready != 1 || kinds[0].Wanted != 1 || len(rows) != 1 || rows[0].Warm != kinds[0].Fingerprint || known[kinds[0].Fingerprint] {
				return fmt.Errorf("%+v, %d rows", kinds, len(rows))
			}
			now = kinds[0]
			return nil
		})
		known[now.Fingerprint] = true
	}
	// Only the engine's own kind is used.
	e, err := c.Provision(ctx, "v1", "reference-engine")
	if err != nil {
		t.Fatal(err)
	}
	if rows := r.Audited(t, "provision"); len(rows) == 0 || rows[0].EngineID != e.EngineID || rows[0].Metadata["warm"] == true {
		t.Errorf("audited as %+v", rows)
	}

	if _, err := admin.SetPolicy(ctx, p.ProductID, *policy(map[string]any{"warm_pool": 2, "engine_image": harness.FailingImage})); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the admin sees why there is none", func() error {
		kinds := warmKinds(r, t)
		if len(kinds) != 1 || kinds[0].Image != harness.FailingImage || kinds[0].Wanted != 2 || kinds[0].Ready != 0 || kinds[0].Error == "" || !kinds[0].RetryAt.After(time.Now()) {
			return fmt.Errorf("%+v", kinds)
		}
		return nil
	})
	harness.Eventually(t, "the failed ones are removed", func() error {
		if rows := s.WarmRows(prefix); len(rows) > 0 {
			return fmt.Errorf("%d rows", len(rows))
		}
		return nil
	})
	if _, err := admin.SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "a kind that nobody wants is not reported", func() error {
		if kinds := warmKinds(r, t); len(kinds) > 0 {
			return fmt.Errorf("%+v", kinds)
		}
		if keys, _, err := s.Consul.KV().Keys(prefix+"warm-setbacks/", "", nil); err != nil || len(keys) > 0 {
			return fmt.Errorf("%v, %w", keys, err)
		}
		return nil
	})
	if _, err := c.Destroy(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
}

// After a change of the provider keys, no warm engine with the older keys is used, and all
// are replaced without a request; a rollout ignores them.
func TestWarmEnginesGetNewProviderKeys(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t) // provider keys are one secret per Vault
	const prefix = "warm-keys/"
	vars := map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_WARM_POOL": "2", "ORCH_VOLUME_POOL": "4", "LLM_API_KEY": "first",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}
	r, s, ctx := harness.StartService(t, stack, vars), harness.OpenStores(t, stack), t.Context()
	c := r.Product(t, nil)
	s.AwaitWarm(r, 2)
	old := map[string]bool{}
	for _, row := range s.WarmRows(prefix) {
		old[row.EngineID] = true
	}
	r.Stop()
	vars["LLM_API_KEY"] = "second"
	r = harness.StartService(t, stack, vars)
	c.BaseURL = r.URL
	e, err := c.Provision(ctx, "u", "") // immediately
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.HasProviderKey(ctx, e, "second"); err != nil || old[e.EngineID] {
		t.Errorf("an engine with the older keys was handed out: %v", err)
	}
	harness.Eventually(t, "the older ones are replaced", func() error {
		rows := s.WarmRows(prefix)
		for _, row := range rows {
			if old[row.EngineID] || row.State != engine.Running {
				return fmt.Errorf("%s is %s", row.EngineID, row.State)
			}
		}
		if len(rows) != 2 {
			return fmt.Errorf("%d warm engines", len(rows))
		}
		return nil
	})
	if got, err := r.Admin().ApplyProviderKeys(ctx); err != nil || got.Pending != 0 {
		t.Errorf("rollout: %+v, %v", got, err)
	}
	// On a busy machine, a warm engine that responds late is not handed out.
	harness.Eventually(t, "a warm engine is handed out", func() error {
		warm := s.WarmRows(prefix)
		if e, err = c.Provision(ctx, "warm", ""); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(warm, func(row *engine.Row) bool { return row.EngineID == e.EngineID }) {
			return nil
		}
		if _, err := c.Destroy(ctx, "warm"); err != nil {
			t.Fatal(err)
		}
		return errors.New("another engine was")
	})
	if err := harness.HasProviderKey(ctx, e, "second"); err != nil {
		t.Error(err)
	}
	harness.Eventually(t, "its audit row says that it was warm", func() error {
		rows := r.Audited(t, "provision")
		for _, row := range rows {
			if row.EngineID == e.EngineID && row.UserID == "warm" && row.Metadata["warm"] == true {
				return nil
			}
		}
		return fmt.Errorf("%+v", rows)
	})
}

// If nodes are full, warm engines are preempted by users' engines: by provisions of another
// kind and by starts, for memory and for ports.
func TestWarmEnginesArePreempted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		stack devstack.Config
		code  string
	}{
		"memory": {devstack.Config{MemoryMB: 200}, "CAPACITY_EXHAUSTED"},
		"ports":  {devstack.Config{DynamicPorts: [2]int{0, 4}}, "PORT_EXHAUSTION"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stack := harness.OwnStack(t, tc.stack)
			const prefix = "give-way/"
			// There is capacity for four engines of 50 MB, and the pool takes all but one.
			r := harness.StartService(t, stack, map[string]string{
				"ORCH_CONSUL_PREFIX": prefix, "ORCH_ENGINE_MEMORY_MB": "50", "ORCH_WARM_POOL": "4", "ORCH_VOLUME_POOL": "4",
			})
			s, ctx := harness.OpenStores(t, stack), t.Context()
			c := r.Product(t, harness.AnyImage)
			s.AwaitWarm(r, 3)
			harness.Eventually(t, "the admin sees that there is no capacity", func() error {
				kinds := warmKinds(r, t)
				if len(kinds) != 1 || kinds[0].Wanted != 4 || kinds[0].Ready != 3 || !strings.Contains(kinds[0].Error, "capacity") {
					return fmt.Errorf("%+v", kinds)
				}
				return nil
			})
			// The last place is used by a user; for the next two, warm engines are
			// preempted.
			for i := range 3 {
				e, err := c.Provision(ctx, fmt.Sprint("cold", i), "reference-engine.v2")
				if err != nil {
					t.Fatalf("cold%d: %v", i, err)
				}
				harness.Remember(t, e, e.APIKey, "alive")
				if got, want := len(s.WarmRows(prefix)), 3-i; got != want {
					t.Errorf("%d warm engines after cold%d, want %d", got, i, want)
				}
			}
			for _, row := range r.Audited(t, "provision") {
				if row.Outcome != "ok" && row.Actor != "system" {
					t.Errorf("a provision for which others were preempted is audited as %+v", row)
				}
			}
			// A start needs its own node, so the last warm engine is preempted.
			if _, err := c.Stop(ctx, "cold0"); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Provision(ctx, "takes-the-room", "reference-engine.v2"); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Start(ctx, "cold0"); err != nil {
				t.Fatal(err)
			}
			if got := len(s.WarmRows(prefix)); got != 0 {
				t.Errorf("%d warm engines are left", got)
			}
			// Then there is no engine that could be preempted.
			harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "one too many", "reference-engine.v2")), 503, tc.code)
			harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "one too many")), 404, "ENGINE_NOT_FOUND")
		})
	}
}

func TestWarmEngines(t *testing.T) {
	t.Parallel()
	const prefix = "warm/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_WARM_POOL": "2", "ORCH_VOLUME_POOL": "4"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, map[string]any{"max_engines": 6})
	s.AwaitWarm(r, 2)
	if list, err := c.Engines(ctx, client.EngineFilter{}); err != nil || list.Total != 0 {
		t.Fatalf("a product sees engines that are nobody's: %+v, %v", list, err)
	}

	// A burst that is larger than the pool: some engines are warm, some cold, and each user
	// gets a different one.
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
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	_, err = c.Provision(ctx, "u0", "")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
	seen := map[string]bool{}
	for i, e := range engines {
		if seen[e.EngineID] || seen[e.URL] {
			t.Errorf("two users got %s at %s", e.EngineID, e.URL)
		}
		seen[e.EngineID], seen[e.URL] = true, true
		harness.Remember(t, e, e.APIKey, fmt.Sprint("brain of ", i))
		if brain := harness.Export(t, e, e.APIKey); len(brain.Memories) != 1 {
			t.Errorf("the brain of a new engine holds %+v", brain.Memories)
		}
	}
	entries, _ := harness.AuditLog(t, c, "?action=provision")
	warm := 0
	for _, e := range entries {
		if e.Metadata["warm"] == true {
			warm++
		}
	}
	if warm == 0 { // on a busy machine, one that responds late is not handed out
		t.Error("none of the provisions was warm")
	}
	s.AwaitWarm(r, 2)

	// The job of a formerly warm engine names its owner, and its process is the one that
	// waited.
	harness.Eventually(t, "the jobs are labelled", func() error {
		for i, e := range engines {
			job, _, err := s.Nomad.Jobs().Info("engine-"+e.EngineID, nil)
			if err != nil {
				return err
			}
			if user := fmt.Sprintf("u%d", i); job.UI == nil || !strings.Contains(job.UI.Description, user) {
				return fmt.Errorf("the job of %s has %+v", user, job.UI)
			}
		}
		return nil
	})
	for i, e := range engines {
		user := fmt.Sprint("u", i)
		if runs := harness.Export(t, e, e.APIKey).Runs; len(runs) != 1 {
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
		if err := harness.Export(t, again, got.APIKey).Knows(fmt.Sprint("brain of ", i)); err != nil {
			t.Error(err)
		}
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
		if left := s.Traces(e.EngineID); len(left) > 0 {
			t.Errorf("left of %s: %v", user, left)
		}
	}
	if got := s.Census(prefix); got["rows"] != 2 || got["quota"] != 0 {
		t.Errorf("got %v, want the two warm engines alone", got)
	}
}

// A warm engine whose process died is replaced and never used; a policy adds warm engines
// of its own, and removes them again.
func TestWarmEnginesAreReplaced(t *testing.T) {
	t.Parallel()
	const prefix = "warm-replaced/"
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=3"))
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	p, err := admin.RegisterProduct(ctx, "warm", "Warm", harness.PolicyOf(t, map[string]any{"warm_pool": 1, "engine_image": "reference-engine.v2", "memory_mb": 40}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	s.AwaitWarm(r, 1)
	jobs := func() (ids []string) {
		list, _, err := s.Nomad.Jobs().PrefixList("engine-")
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range list {
			if info, _, err := s.Nomad.Jobs().Info(j.ID, nil); err == nil && info.Meta["deployment"] == "warm-replaced" {
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
	rows, _, err := s.Consul.KV().List(prefix+"engines/", nil)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if err := json.Unmarshal(rows[0].Value, &waiting); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Nomad.Jobs().Deregister(first[0], false, nil); err != nil { // an accident
		t.Fatal(err)
	}
	harness.Eventually(t, "its process has ended", func() error {
		if _, err := harness.EngineCall(ctx, &client.Engine{URL: waiting.URL}, "", http.MethodGet, "/health", nil, nil); err == nil {
			return errors.New("it responds")
		}
		return nil
	})
	e, err := c.Provision(ctx, "u", "") // immediately, before any replica has noticed
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "alive")
	if "engine-"+e.EngineID == first[0] {
		t.Error("an engine that was ended was handed out")
	}
	harness.Eventually(t, "the dead one is replaced", func() error {
		now := jobs()
		if len(now) != 2 || now[0] == first[0] || now[1] == first[0] {
			return fmt.Errorf("jobs: %v", now)
		}
		return nil
	})
	s.AwaitWarm(r, 1)
	if _, err := admin.SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	s.AwaitWarm(r, 0)
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing remains", func() error {
		if got := s.Census(prefix); got["rows"] != 0 || got["jobs"] != 0 || got["keys"] != 0 || got["variables"] != 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}
