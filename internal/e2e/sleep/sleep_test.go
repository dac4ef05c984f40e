package sleep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/testpg"
)

// sleepy is the policy of a product whose engines sleep as soon as possible: a second after
// their last admit, plus the flushes that follow.
var sleepy = map[string]any{"idle_timeout_s": 1}

func TestSleepAndWake(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	c, wakeful := r.Product(t, sleepy), r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	awake := func(d time.Duration) { // it would sleep again before it is looked at
		t.Helper()
		if _, err := c.KeepAwake(ctx, "u", d); err != nil {
			t.Fatal(err)
		}
	}
	e := harness.Provision(t, c, "u", "")
	awake(time.Hour)
	harness.Remember(t, e, e.APIKey, "before the sleep")
	harness.Provision(t, wakeful, "w", "")
	awake(time.Second)

	harness.Eventually(t, "the idle engine sleeps", func() error { return harness.InState(t, c, "u", "sleeping") })
	if err := harness.InState(t, wakeful, "w", "running"); err != nil {
		t.Errorf("with the service's own idle timeout: %v", err)
	}
	if count, running := s.Processes(e.EngineID); count != 0 || running != 0 {
		t.Errorf("asleep with count %d and %d allocations that run", count, running)
	}
	if traces := s.Traces(e.EngineID); !slices.Contains(traces, "host volume") || !slices.Contains(traces, "vault key") {
		t.Errorf("asleep, only these are left: %v", traces)
	}
	got, err := c.Engine(ctx, "u")
	if err != nil || got.APIKey != e.APIKey || got.URL != "" {
		t.Errorf("asleep: %+v, %v", got, err)
	}
	_, err = c.KeepAwake(ctx, "u", time.Minute)
	harness.WantCode(t, err, 409, "ENGINE_NOT_RUNNING")
	for _, provision := range []bool{false, true} {
		if a, err := harness.Admit(ctx, c, "u", provision, false); err != nil || a.Reason != "engine_sleeping" {
			t.Errorf("admit without auto_wake: %+v, %v", a, err)
		}
	}
	a, err := harness.Admit(ctx, c, "u", false, true)
	if err != nil || !a.Admitted || a.Engine.EngineID != e.EngineID || a.Engine.APIKey != e.APIKey {
		t.Fatalf("admit with auto_wake: %+v, %v", a, err)
	}
	awake(time.Hour)
	if err := harness.Export(t, a.Engine, a.Engine.APIKey).Knows("before the sleep"); err != nil {
		t.Error(err)
	}
	for action, actor := range map[string]string{"sleep": "system", "wake": ""} {
		harness.Eventually(t, action+" is audited", func() error { // the row may be completed later
			rows, _ := harness.AuditLog(t, c, "?action="+action)
			if len(rows) != 1 || rows[0].Outcome != "ok" || rows[0].EngineID != e.EngineID || actor != "" && rows[0].Actor != actor {
				return fmt.Errorf("%+v", rows)
			}
			return nil
		})
	}
	awake(time.Second)

	// A sleeping engine can be stopped without a process; then only a start starts it
	// again.
	harness.Eventually(t, "it sleeps again", func() error { return harness.InState(t, c, "u", "sleeping") })
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if a, err := harness.Admit(ctx, c, "u", true, true); err != nil || a.Reason != "engine_stopped" {
		t.Errorf("admit of a stopped engine: %+v, %v", a, err)
	}
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it sleeps again", func() error { return harness.InState(t, c, "u", "sleeping") })
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// Tests what keeps an engine awake and what does not. An idle engine beside them shows that
// the idle time has passed.
func TestKeptAwake(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "4"})
	c := r.Product(t, sleepy)
	ctx := t.Context()
	idle := func(name string) {
		t.Helper()
		harness.Provision(t, c, name, "")
		harness.Eventually(t, name+" sleeps", func() error { return harness.InState(t, c, name, "sleeping") })
	}
	kept := harness.Provision(t, c, "kept", "")
	until, err := c.KeepAwake(ctx, "kept", time.Hour)
	if left := time.Until(until); err != nil || left < 59*time.Minute || left > 61*time.Minute {
		t.Fatalf("kept awake until %s, %v", until, err)
	}
	works := harness.Provision(t, c, "works", "")
	work := func(seconds int) {
		t.Helper()
		if status, err := harness.EngineCall(ctx, works, works.APIKey, http.MethodPost, "/work", map[string]int{"seconds": seconds}, nil); err != nil || status != 200 {
			t.Fatalf("work: %d, %v", status, err)
		}
	}
	work(3600)
	idle("idle-1")
	idle("idle-2")
	for _, user := range []string{"kept", "works"} {
		if err := harness.InState(t, c, user, "running"); err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	if m := harness.Export(t, kept, kept.APIKey); len(m.Runs) != 1 {
		t.Errorf("the engine that is kept awake ran %d times", len(m.Runs))
	}
	if rows, _ := harness.AuditLog(t, c, "?action=sleep"); len(rows) != 2 {
		t.Errorf("%d engines were put to sleep", len(rows))
	}
	// The last call counts, and expires by itself.
	if _, err := c.KeepAwake(ctx, "kept", time.Second); err != nil {
		t.Fatal(err)
	}
	work(0)
	for _, user := range []string{"kept", "works"} {
		harness.Eventually(t, user+" sleeps", func() error { return harness.InState(t, c, user, "sleeping") })
	}

	_, err = c.KeepAwake(ctx, "nobody", time.Minute)
	harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
	for _, d := range []time.Duration{0, -time.Second, time.Hour + time.Second} {
		_, err = c.KeepAwake(ctx, "kept", d)
		harness.WantCode(t, err, 400, "INVALID_REQUEST")
	}
	harness.WantCode(t, c.Do(ctx, http.MethodPost, "/engines/kept/keep-awake", nil, nil), 400, "INVALID_REQUEST")
}

// Denied admits keep nothing awake, however many there are.
func TestDeniedAdmitsKeepNothingAwake(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	c := r.Product(t, map[string]any{"idle_timeout_s": 1, "rate_limit_rpm": 0})
	harness.Provision(t, c, "u", "")
	ctx, stop := context.WithCancel(t.Context())
	var denied sync.WaitGroup
	for range 4 {
		denied.Go(func() {
			for ctx.Err() == nil {
				_, err := harness.Admit(ctx, c, "u", false, true)
				var e *client.Error
				if ctx.Err() == nil && (!errors.As(err, &e) || e.Code != "RATE_LIMITED") {
					t.Errorf("got %v", err)
					return
				}
			}
		})
	}
	harness.Eventually(t, "the engine sleeps", func() error { return harness.InState(t, c, "u", "sleeping") })
	stop()
	denied.Wait()
}

// Admits on one replica keep an engine awake whichever replica leads, and a product's
// keep-awake waits for a rotation of its key.
func TestSleepOfTwoReplicas(t *testing.T) {
	t.Parallel()
	testpg.Need(t)
	pg, err := testpg.New()
	t.Cleanup(pg.Stop)
	if err != nil {
		t.Fatal(err)
	}
	database, err := pg.Database()
	if err != nil {
		t.Fatal(err)
	}
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_DATABASE_URL": database, "ORCH_VOLUME_POOL": "2"})
	c := all[0].Product(t, sleepy)
	ctx := t.Context()
	for i, r := range all { // one of them leads
		user := fmt.Sprint("used-", i)
		e := harness.Provision(t, c, user, "")
		using, stop := context.WithCancel(ctx)
		var admits sync.WaitGroup
		admits.Go(func() {
			tick := time.NewTicker(300 * time.Millisecond)
			defer tick.Stop()
			for {
				if a, err := harness.Admit(using, harness.At(c, r), user, false, false); using.Err() == nil && (err != nil || !a.Admitted) {
					t.Errorf("got %+v, %v", a, err)
				}
				select {
				case <-using.Done():
					return
				case <-tick.C:
				}
			}
		})
		for round := range 2 {
			idle := fmt.Sprint("idle-", i, round)
			harness.Provision(t, c, idle, "")
			harness.Eventually(t, "the idle engine sleeps", func() error { return harness.InState(t, c, idle, "sleeping") })
		}
		stop()
		admits.Wait()
		if m := harness.Export(t, e, e.APIKey); len(m.Runs) != 1 {
			t.Errorf("the engine in use ran %d times", len(m.Runs))
		}
		harness.Eventually(t, "the engine that is not used any more sleeps", func() error { return harness.InState(t, c, user, "sleeping") })
	}

	harness.Provision(t, c, "rotated", "")
	if _, err := c.KeepAwake(ctx, "rotated", time.Hour); err != nil {
		t.Fatal(err)
	}
	rotated := make(chan error, 1)
	for range 5 {
		go func() { rotated <- harness.ErrOf(c.RotateKey(ctx, "rotated")) }()
		for done := false; !done; {
			if _, err := harness.At(c, all[1]).KeepAwake(ctx, "rotated", time.Hour); err != nil {
				t.Fatalf("during a rotation: %v", err)
			}
			select {
			case err := <-rotated:
				if done = true; err != nil {
					t.Fatal(err)
				}
			default:
			}
		}
	}

	// Nothing is put to sleep without an audit row.
	before := map[*harness.Replica]int{}
	for _, r := range all {
		before[r] = r.Logs.Count("[WARN]", "scheduler:", "error=")
	}
	harness.Provision(t, c, "unaudited", "") // it may sleep two seconds later
	pg.Halt()
	harness.Eventually(t, "the sweep waits for the audit log", func() error {
		for _, r := range all {
			if r.Logs.Count("[WARN]", "scheduler:", "error=") > before[r] {
				return nil
			}
		}
		return errors.New("it is not reported")
	})
	if err := harness.InState(t, c, "unaudited", "running"); err != nil {
		t.Errorf("without an audit log: %v", err)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it sleeps", func() error { return harness.InState(t, c, "unaudited", "sleeping") })
}

// TestSleepRacesAdmits admits users, on two replicas, just when their engines are being put
// to sleep: an admitted user finds an engine that responds.
func TestSleepRacesAdmits(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "3"})
	prefix := "replicas-" + t.Name() + "/"
	c := all[0].Product(t, sleepy)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	var users sync.WaitGroup
	var mu sync.Mutex
	found := map[string]int{}
	for i := range 3 {
		user := fmt.Sprint("user-", i)
		harness.Provision(t, c, user, "")
		key := rowKey(s, prefix, user)
		users.Go(func() {
			for round := range 6 {
				row := awaitRow(s, key, func(row map[string]any) bool { return row["sleep_pending"] != nil || row["op"] != nil })
				if row == nil {
					return
				}
				what := "while the leader asks"
				if row["op"] != nil {
					what = "while it falls asleep"
				}
				delay := time.NewTimer(time.Duration(rand.IntN(3000)) * time.Millisecond)
				<-delay.C
				a, err := harness.Admit(ctx, harness.At(c, all[round%2]), user, false, true)
				if err != nil || !a.Admitted {
					t.Errorf("%s: %+v, %v", user, a, err)
					return
				}
				// After its response, an admit keeps the engine for at least the idle time.
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for answered := time.Now(); ; <-tick.C {
					status, err := harness.EngineCall(ctx, a.Engine, a.Engine.APIKey, http.MethodGet, "/health", nil, nil)
					since := time.Since(answered)
					if since > time.Second {
						break
					}
					if err != nil || status != http.StatusOK {
						t.Errorf("%s was admitted %s, and %s later its engine returns %d, %v", user, what, since, status, err)
						return
					}
				}
				mu.Lock()
				found[what]++
				mu.Unlock()
			}
		})
	}
	users.Wait()
	rows, _ := harness.AuditLog(t, c, "?action=sleep&limit=1000")
	t.Logf("admits came %v; %d sleeps", found, len(rows))
}

// rowKey returns the key of a user's row in Consul.
func rowKey(s *harness.Stores, prefix, user string) string {
	s.T.Helper()
	pairs, _, err := s.Consul.KV().List(prefix+"engines/", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, p := range pairs {
		row := map[string]any{}
		if err := json.Unmarshal(p.Value, &row); err == nil && row["user_id"] == user {
			return p.Key
		}
	}
	s.T.Fatalf("no row of %s", user)
	return ""
}

// awaitRow waits until a row is as wanted; it returns nil after reporting an error.
func awaitRow(s *harness.Stores, key string, wanted func(map[string]any) bool) map[string]any {
	var index uint64
	for deadline := time.Now().Add(harness.Patience); time.Now().Before(deadline); {
		p, meta, err := s.Consul.KV().Get(key, (&consul.QueryOptions{WaitIndex: index, WaitTime: 5 * time.Second}).WithContext(s.T.Context()))
		if err != nil || p == nil {
			s.T.Errorf("row %s: %v, %v", key, p, err)
			return nil
		}
		index = meta.LastIndex
		row := map[string]any{}
		if err := json.Unmarshal(p.Value, &row); err != nil {
			s.T.Error(err)
			return nil
		}
		if wanted(row) {
			return row
		}
	}
	s.T.Errorf("row %s: never as wanted", key)
	return nil
}
