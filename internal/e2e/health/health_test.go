package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// A crash is noticed at once. Nomad restarts the process twice, then the service does.
// Brain, key and engine stay; each step is in the audit log.
func TestCrashIsHealed(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.Soon)
	c := r.Product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the crashes")
	for i := 1; i <= 3; i++ {
		harness.CrashEngine(t, e)
		began := time.Now()
		harness.Eventually(t, "the crash is seen", func() error {
			got, err := c.Engine(t.Context(), "u")
			if err == nil && got.Status == "running" {
				err = fmt.Errorf("still running")
			}
			return err
		})
		t.Logf("crash %d seen after %s", i, time.Since(began).Round(time.Millisecond))
		again := harness.AwaitEngine(t, c, "u", "running", "")
		t.Logf("crash %d healed after %s", i, time.Since(began).Round(time.Millisecond))
		if again.EngineID != e.EngineID || again.APIKey != e.APIKey {
			t.Fatalf("got another engine: %+v, was %+v", again, e)
		}
		e = again
		brain := harness.Export(t, e, e.APIKey)
		if err := brain.Knows("before the crashes"); err != nil {
			t.Fatal(err)
		}
		if len(brain.Runs) != i+1 {
			t.Fatalf("%d processes after %d crashes", len(brain.Runs), i)
		}
	}
	harness.Eventually(t, "the audit log is complete", func() error {
		got := harness.Actions(t, c, "u")
		want := map[string]int{
			"provision": 1, "health_failed crashed": 3, "auto_restart_start by nomad": 2, "auto_restart_start by orch": 1, "auto_restart_success": 3,
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// An engine that crashes after every start is restarted the configured number of times, and
// then stays failed until somebody starts it.
func TestServiceGivesUp(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_RESTART_MAX_ATTEMPTS=2", "ORCH_RESTART_BACKOFF_MAX_S=120"))
	c := r.Product(t, harness.AnyImage)
	if _, err := c.Provision(t.Context(), "u", "reference-engine.crash-after-10s"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the service gives up", func() error {
		if got := harness.Actions(t, c, "u"); got["auto_restart_gave_up"] != 1 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
	// A restart that failed for a reason other than the engine does not count as an
	// attempt.
	attempts := map[any]int{}
	entries, _ := harness.AuditLog(t, c, "?limit=1000&action=auto_restart_start")
	for _, e := range entries {
		if e.Metadata["by"] == "orch" && slices.Contains([]string{"ok", "ENGINE_BOOT_FAILED", "BOOT_TIMEOUT"}, e.Outcome) {
			attempts[e.Metadata["attempt"]]++
		}
	}
	if want := map[any]int{1.0: 1, 2.0: 1}; !maps.Equal(attempts, want) {
		t.Errorf("the service made the attempts %v, want %v", attempts, want)
	}
	if _, err := harness.EngineIs(t, c, "u", "failed", ""); err != nil {
		t.Fatal(err)
	}
	a, err := harness.Admit(t.Context(), c, "u", true, true)
	if err != nil || a.Admitted || a.Reason != "engine_unhealthy" {
		t.Fatalf("admit: %+v, %v", a, err)
	}
	if got, err := c.Start(t.Context(), "u"); err != nil || got.Status != "running" {
		t.Fatalf("start manually: %+v, %v", got, err)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// failHealth makes an engine of the image fail-health-file report that it is unhealthy, or
// healthy again.
func failHealth(t *testing.T, s *harness.Stores, prefix string, fail bool, subsystem ...string) {
	t.Helper()
	for _, path := range volumePaths(s, prefix) {
		file := filepath.Join(path, "fail-health")
		if fail {
			if err := os.WriteFile(file, []byte(strings.Join(subsystem, "")), 0o600); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// volumePaths returns the directories of a deployment's brains.
func volumePaths(s *harness.Stores, prefix string) (paths []string) {
	s.T.Helper()
	pairs, _, err := s.Consul.KV().List(prefix+"engines/", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, pair := range pairs {
		var row struct {
			Path string `json:"volume_path"`
		}
		if err := json.Unmarshal(pair.Value, &row); err != nil {
			s.T.Fatal(err)
		}
		paths = append(paths, row.Path)
	}
	return paths
}

// An engine that reports that it is unhealthy is failed after probes have confirmed it, and
// runs again, as the same process, when it reports that it is healthy.
func TestUnhealthyEngineRecovers(t *testing.T) {
	t.Parallel()
	const prefix = "unhealthy/"
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_RESTART_BACKOFF_BASE_S=600", "ORCH_RESTART_BACKOFF_MAX_S=600"))
	c := r.Product(t, harness.AnyImage)
	e, err := c.Provision(t.Context(), "u", "reference-engine.fail-health-file")
	if err != nil {
		t.Fatal(err)
	}
	s := harness.OpenStores(t, harness.Shared)
	failHealth(t, s, prefix, true)
	harness.AwaitEngine(t, c, "u", "failed", "unhealthy")
	a, err := harness.Admit(t.Context(), c, "u", true, true)
	if err != nil || a.Reason != "engine_unhealthy" {
		t.Fatalf("admit: %+v, %v", a, err)
	}
	failHealth(t, s, prefix, false)
	again := harness.AwaitEngine(t, c, "u", "running", "")
	if runs := harness.Export(t, again, e.APIKey).Runs; len(runs) != 1 {
		t.Errorf("the process was restarted: %+v", runs)
	}
	if again.LastHealthAt == nil || again.LastHealthAt.Before(again.CreatedAt) {
		t.Errorf("last health at %v", again.LastHealthAt)
	}
	if got := harness.Actions(t, c, "u"); got["health_failed unhealthy"] != 1 || got["health_recovered"] != 1 {
		t.Errorf("audit: %v", got)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// If many engines fail together, none is restarted except for a canary every 10 s. All run
// again, without manual action, when the cause has disappeared.
func TestStormIsHeld(t *testing.T) {
	t.Parallel()
	const prefix, fleet = "storm/", 12
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=6", "ORCH_RESTART_MAX_ATTEMPTS=3", "ORCH_BOOT_TIMEOUT_S=20"))
	c := r.Product(t, harness.AnyImage)
	for i := range fleet {
		if _, err := c.Provision(t.Context(), fmt.Sprint("u", i), "reference-engine.fail-health-file"); err != nil {
			t.Fatal(err)
		}
	}
	s := harness.OpenStores(t, harness.Shared)
	failHealth(t, s, prefix, true)
	status := func(health string, running int) func() error {
		return func() error {
			st, err := c.Status(t.Context())
			if err != nil {
				return err
			}
			if st.Health != health || running >= 0 && st.ByStatus["running"] != running {
				return fmt.Errorf("%+v", st)
			}
			return nil
		}
	}
	harness.Eventually(t, "the fleet is critical", status("critical", 0))
	admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	held := func(outcome string) func() error {
		return func() error {
			entries, _ := harness.AuditLog(t, admin, "?action=auto_restart_held")
			if len(entries) != 1 || entries[0].Outcome != outcome {
				return fmt.Errorf("%d rows: %+v", len(entries), entries)
			}
			return nil
		}
	}
	harness.Eventually(t, "one row reports that restarts are held", held("interrupted"))
	// A canary fails at its boot deadline; that shows nothing about the engine.
	harness.Eventually(t, "a canary is restarted", func() error {
		entries, _ := harness.AuditLog(t, c, "?limit=1000&action=auto_restart_failed")
		if len(entries) == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	failHealth(t, s, prefix, false)
	harness.Eventually(t, "all run again", status("ok", fleet))
	harness.Eventually(t, "the row is completed", held("ok"))
	if entries, _ := harness.AuditLog(t, c, "?limit=1000&action=auto_restart_gave_up"); len(entries) != 0 {
		t.Errorf("gave up in a storm: %+v", entries)
	}
	for i := range fleet {
		if _, err := c.Destroy(t.Context(), fmt.Sprint("u", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// A node whose agent is dead: its engines are reported as such and nobody moves them; stop,
// destroy and rotate return the right errors. When the node is back, the engines run again
// as the same processes, and the requested changes are carried out.
func TestNodeDown(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	const prefix = "node-down/"
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=4"))
	c := r.Product(t, nil)
	ctx := t.Context()
	engines := map[string]*client.Engine{}
	for _, user := range []string{"stays", "stopped", "destroyed", "rotated"} {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, "before "+user)
		engines[user] = e
	}
	// Nomad restarts what a node had not reported to it.
	s := harness.OpenStores(t, stack)
	for _, e := range engines {
		s.AwaitReported(e.EngineID)
	}
	began := time.Now()
	if err := stack.Kill(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	// A rotation that begins before the silence is noticed waits for the proof until then.
	_, err := c.RotateKey(ctx, "rotated")
	harness.WantCode(t, err, 504, "ROTATION_UNCONFIRMED")
	for user := range engines {
		if e := harness.AwaitEngine(t, c, user, "failed", "node_down"); e.URL != "" {
			t.Errorf("%s is failed and has the url %s", user, e.URL)
		}
	}
	_, err = c.RotateKey(ctx, "rotated")
	harness.WantCode(t, err, 409, "ENGINE_BUSY")
	t.Logf("the dead node was seen after %s", time.Since(began).Round(time.Millisecond))
	if _, err := c.RotateKey(ctx, "stays"); err == nil {
		t.Error("a key of a silent engine was rotated")
	}
	_, err = c.Stop(ctx, "stopped")
	harness.WantCode(t, err, 504, "STOP_UNCONFIRMED")
	_, err = c.Start(ctx, "stopped")
	harness.WantCode(t, err, 409, "ENGINE_BUSY")
	if _, err := c.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Engine(ctx, "destroyed"); err == nil {
		t.Error("the destroyed engine is still returned")
	}
	if got := s.Census(prefix); got["graves/"] != 1 || got["quota"] != 3 {
		t.Errorf("got %v, want one unreachable volume and three engines", got)
	}
	if err := stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	e := harness.AwaitEngine(t, c, "stays", "running", "")
	t.Logf("running again %s after the node", time.Since(back).Round(time.Millisecond))
	if runs := harness.Export(t, e, e.APIKey).Runs; len(runs) != 1 {
		t.Errorf("the process was restarted: %+v; Nomad reports\n%s", runs, s.TaskEvents(e.EngineID))
	}
	harness.AwaitEngine(t, c, "stopped", "stopped", "")
	rolled := harness.AwaitEngine(t, c, "rotated", "running", "")
	if rolled.APIKey == engines["rotated"].APIKey {
		t.Error("the rotation was not rolled forward")
	}
	if err := harness.Export(t, rolled, rolled.APIKey).Knows("before rotated"); err != nil {
		t.Error(err)
	}
	harness.Eventually(t, "the unreachable volume is deleted", func() error {
		if left := s.Traces(engines["destroyed"].EngineID); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	started, err := c.Start(ctx, "stopped")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, engines["stopped"].APIKey).Knows("before stopped"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"stays", "stopped", "rotated"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	s.WantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// The record of a storm that ended under another leader is removed by the next leader, even
// if that one has led before.
func TestStormNoteOfAnotherLeader(t *testing.T) {
	t.Parallel()
	prefix := "stormnote/"
	harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	s := harness.OpenStores(t, harness.Shared)
	leads := func() (id string) {
		harness.Eventually(t, "a replica leads", func() (err error) {
			if id, err = s.Leader(prefix); err == nil && id == "" {
				err = errors.New("none")
			}
			return err
		})
		return id
	}
	for range 2 {
		note := &consul.KVPair{Key: prefix + "storm", Value: []byte(`{"began": "2026-11-24T06:19:48Z", "audit_id": 1}`)}
		if _, err := s.Consul.KV().Put(note, nil); err != nil {
			t.Fatal(err)
		}
		s.EndSession(prefix, leads())
		harness.Eventually(t, "the record is removed", func() error {
			pair, _, err := s.Consul.KV().Get(note.Key, nil)
			if err == nil && pair != nil {
				err = errors.New("it is there")
			}
			return err
		})
	}
}
