package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
)

// soon makes the service's reactions quick.
var soon = map[string]string{
	"ORCH_HEALTH_CHECK_INTERVAL_S": "1", "ORCH_HEALTH_CHECK_TIMEOUT_S": "1", "ORCH_HEALTH_MAX_FAILURES": "2",
	"ORCH_RESTART_BACKOFF_BASE_S": "1", "ORCH_RESTART_BACKOFF_MAX_S": "2",
}

func with(vars map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for k, v := range vars {
		all[k] = v
	}
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		all[k] = v
	}
	return all
}

// engineIs returns nil when the engine has a status and, unless it is empty, a
// reason.
func engineIs(t *testing.T, c *client.Client, user, status, reason string) (*client.Engine, error) {
	t.Helper()
	e, err := c.Engine(t.Context(), user)
	if err == nil && (e.Status != status || reason != "" && e.Reason != reason) {
		err = fmt.Errorf("%s is %s (%s)", user, e.Status, e.Reason)
	}
	return e, err
}

// awaitEngine waits until the engine has a status.
func awaitEngine(t *testing.T, c *client.Client, user, status, reason string) (e *client.Engine) {
	t.Helper()
	eventually(t, user+" is "+status, func() (err error) {
		e, err = engineIs(t, c, user, status, reason)
		return err
	})
	return e
}

// isNow is awaitEngine where the call before has made it so: all that may be waited
// for is a view that is a moment behind.
func isNow(t *testing.T, c *client.Client, user, status, reason string) *client.Engine {
	t.Helper()
	began := time.Now()
	e := awaitEngine(t, c, user, status, reason)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s is %s after %s", user, status, took)
	}
	return e
}

// crash ends an engine's process as a bug would.
func crash(t *testing.T, e *client.Engine) {
	t.Helper()
	// The process goes without an answer.
	if status, err := engineCall(t.Context(), e, e.APIKey, http.MethodPost, "/crash", nil, nil); err == nil {
		t.Fatalf("crash answered %d", status)
	}
}

// actions counts a user's audit rows by action and the details that matter.
func actions(t *testing.T, c *client.Client, user string) map[string]int {
	t.Helper()
	entries, _ := auditLog(t, c, "?limit=1000&user_id="+user)
	n := map[string]int{}
	for _, e := range entries {
		name := e.Action
		if by, ok := e.Metadata["by"]; ok {
			name += fmt.Sprint(" by ", by)
		}
		if reason, ok := e.Metadata["reason"]; ok && e.Action == "health_failed" {
			name += fmt.Sprint(" ", reason)
		}
		n[name]++
	}
	return n
}

// A crash is seen at once; Nomad restarts the process twice, then the service
// does. Brain, key and engine stay; each step is in the audit log.
func TestCrashIsHealed(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, soon)
	c := r.product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "before the crashes")
	for i := 1; i <= 3; i++ {
		crash(t, e)
		began := time.Now()
		eventually(t, "the crash is seen", func() error {
			got, err := c.Engine(t.Context(), "u")
			if err == nil && got.Status == "running" {
				err = fmt.Errorf("still running")
			}
			return err
		})
		t.Logf("crash %d seen after %s", i, time.Since(began).Round(time.Millisecond))
		again := awaitEngine(t, c, "u", "running", "")
		t.Logf("crash %d healed after %s", i, time.Since(began).Round(time.Millisecond))
		if again.EngineID != e.EngineID || again.APIKey != e.APIKey {
			t.Fatalf("got another engine: %+v, was %+v", again, e)
		}
		e = again
		brain := export(t, e, e.APIKey)
		if err := brain.knows("before the crashes"); err != nil {
			t.Fatal(err)
		}
		if len(brain.Runs) != i+1 {
			t.Fatalf("%d processes after %d crashes", len(brain.Runs), i)
		}
	}
	eventually(t, "the audit log is complete", func() error {
		got := actions(t, c, "u")
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

// An engine that crashes after every start is restarted so often and then left,
// until somebody starts it.
func TestServiceGivesUp(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, with(soon, "ORCH_RESTART_MAX_ATTEMPTS=2", "ORCH_RESTART_BACKOFF_MAX_S=30"))
	c := r.product(t, anyImage)
	if _, err := c.Provision(t.Context(), "u", "reference-engine.crash-after-4s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service gives up", func() error {
		if got := actions(t, c, "u"); got["auto_restart_gave_up"] != 1 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
	// A restart that failed for another reason than the engine's is no attempt.
	attempts := map[any]int{}
	entries, _ := auditLog(t, c, "?limit=1000&action=auto_restart_start")
	for _, e := range entries {
		if e.Metadata["by"] == "orch" && slices.Contains([]string{"ok", "ENGINE_BOOT_FAILED", "BOOT_TIMEOUT"}, e.Outcome) {
			attempts[e.Metadata["attempt"]]++
		}
	}
	if want := map[any]int{1.0: 1, 2.0: 1}; !maps.Equal(attempts, want) {
		t.Errorf("the service made the attempts %v, want %v", attempts, want)
	}
	if _, err := engineIs(t, c, "u", "failed", ""); err != nil {
		t.Fatal(err)
	}
	a, err := admit(t.Context(), c, "u", true, true)
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

// failHealth makes an engine of the image fail-health-file say that it is not
// healthy, or that it is again.
func failHealth(t *testing.T, s *stores, prefix string, fail bool, subsystem ...string) {
	t.Helper()
	for _, path := range s.volumePaths(prefix) {
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

// volumePaths are where the brains of a deployment are.
func (s *stores) volumePaths(prefix string) (paths []string) {
	s.t.Helper()
	pairs, _, err := s.consul.KV().List(prefix+"engines/", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, pair := range pairs {
		var row struct {
			Path string `json:"volume_path"`
		}
		if err := json.Unmarshal(pair.Value, &row); err != nil {
			s.t.Fatal(err)
		}
		paths = append(paths, row.Path)
	}
	return paths
}

// An engine that says that it is not healthy is failed after probes have
// confirmed it, and runs again, as the same process, when it says that it is.
func TestUnhealthyEngineRecovers(t *testing.T) {
	t.Parallel()
	const prefix = "unhealthy/"
	r := startService(t, shared, with(soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_RESTART_BACKOFF_BASE_S=600", "ORCH_RESTART_BACKOFF_MAX_S=600"))
	c := r.product(t, anyImage)
	e, err := c.Provision(t.Context(), "u", "reference-engine.fail-health-file")
	if err != nil {
		t.Fatal(err)
	}
	s := openStores(t, shared)
	failHealth(t, s, prefix, true)
	awaitEngine(t, c, "u", "failed", "unhealthy")
	a, err := admit(t.Context(), c, "u", true, true)
	if err != nil || a.Reason != "engine_unhealthy" {
		t.Fatalf("admit: %+v, %v", a, err)
	}
	failHealth(t, s, prefix, false)
	again := awaitEngine(t, c, "u", "running", "")
	if runs := export(t, again, e.APIKey).Runs; len(runs) != 1 {
		t.Errorf("the process was restarted: %+v", runs)
	}
	if again.LastHealthAt == nil || again.LastHealthAt.Before(again.CreatedAt) {
		t.Errorf("last health at %v", again.LastHealthAt)
	}
	if got := actions(t, c, "u"); got["health_failed unhealthy"] != 1 || got["health_recovered"] != 1 {
		t.Errorf("audit: %v", got)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// When many engines fail together none is restarted but a canary every 10 s, and
// all run again when the cause is gone, without hands.
func TestStormIsHeld(t *testing.T) {
	t.Parallel()
	const prefix, fleet = "storm/", 12
	r := startService(t, shared, with(soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=6", "ORCH_RESTART_MAX_ATTEMPTS=3", "ORCH_BOOT_TIMEOUT_S=10"))
	c := r.product(t, anyImage)
	for i := range fleet {
		if _, err := c.Provision(t.Context(), fmt.Sprint("u", i), "reference-engine.fail-health-file"); err != nil {
			t.Fatal(err)
		}
	}
	s := openStores(t, shared)
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
	eventually(t, "the fleet is critical", status("critical", 0))
	admin := &client.Client{BaseURL: r.url, AdminKey: adminKey}
	held := func(outcome string) func() error {
		return func() error {
			entries, _ := auditLog(t, admin, "?action=auto_restart_held")
			if len(entries) != 1 || entries[0].Outcome != outcome {
				return fmt.Errorf("%d rows: %+v", len(entries), entries)
			}
			return nil
		}
	}
	eventually(t, "one row tells that restarts are held", held("interrupted"))
	// A canary fails at its boot deadline; it says nothing about the engine.
	eventually(t, "a canary is restarted", func() error {
		entries, _ := auditLog(t, c, "?limit=1000&action=auto_restart_failed")
		if len(entries) == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	failHealth(t, s, prefix, false)
	eventually(t, "all run again", status("ok", fleet))
	eventually(t, "the row is completed", held("ok"))
	if entries, _ := auditLog(t, c, "?limit=1000&action=auto_restart_gave_up"); len(entries) != 0 {
		t.Errorf("gave up in a storm: %+v", entries)
	}
	for i := range fleet {
		if _, err := c.Destroy(t.Context(), fmt.Sprint("u", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// A node whose agent is dead: its engines say so and nobody moves them; stop,
// destroy and rotate say what they can. When it is back they run again, as the
// same processes, and what was asked for is carried out.
func TestNodeDown(t *testing.T) {
	t.Parallel()
	stack := ownStack(t)
	const prefix = "node-down/"
	r := startService(t, stack, with(soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=4"))
	c := r.product(t, nil)
	ctx := t.Context()
	engines := map[string]*client.Engine{}
	for _, user := range []string{"stays", "stopped", "destroyed", "rotated"} {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		remember(t, e, e.APIKey, "before "+user)
		engines[user] = e
	}
	// Nomad starts anew what a node had not told it of.
	s := openStores(t, stack)
	for _, e := range engines {
		s.awaitReported(e.EngineID)
	}
	began := time.Now()
	if err := stack.Kill(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	// A rotation that is begun before the silence is known waits for the proof
	// until then.
	_, err := c.RotateKey(ctx, "rotated")
	wantCode(t, err, 504, "ROTATION_UNCONFIRMED")
	for user := range engines {
		if e := awaitEngine(t, c, user, "failed", "node_down"); e.URL != "" {
			t.Errorf("%s is failed and has the url %s", user, e.URL)
		}
	}
	_, err = c.RotateKey(ctx, "rotated")
	wantCode(t, err, 409, "ENGINE_BUSY")
	t.Logf("the dead node was seen after %s", time.Since(began).Round(time.Millisecond))
	if _, err := c.RotateKey(ctx, "stays"); err == nil {
		t.Error("a key of a silent engine was rotated")
	}
	_, err = c.Stop(ctx, "stopped")
	wantCode(t, err, 504, "STOP_UNCONFIRMED")
	_, err = c.Start(ctx, "stopped")
	wantCode(t, err, 409, "ENGINE_BUSY")
	if _, err := c.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Engine(ctx, "destroyed"); err == nil {
		t.Error("the destroyed engine is still told")
	}
	if got := s.census(prefix); got["graves/"] != 1 || got["quota"] != 3 {
		t.Errorf("got %v, want one unreachable volume and three engines", got)
	}
	if err := stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	e := awaitEngine(t, c, "stays", "running", "")
	t.Logf("running again %s after the node", time.Since(back).Round(time.Millisecond))
	if runs := export(t, e, e.APIKey).Runs; len(runs) != 1 {
		t.Errorf("the process was restarted: %+v; Nomad says\n%s", runs, s.taskEvents(e.EngineID))
	}
	awaitEngine(t, c, "stopped", "stopped", "")
	rolled := awaitEngine(t, c, "rotated", "running", "")
	if rolled.APIKey == engines["rotated"].APIKey {
		t.Error("the rotation was not rolled forward")
	}
	if err := export(t, rolled, rolled.APIKey).knows("before rotated"); err != nil {
		t.Error(err)
	}
	eventually(t, "the unreachable volume is deleted", func() error {
		if left := s.traces(engines["destroyed"].EngineID); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	started, err := c.Start(ctx, "stopped")
	if err != nil {
		t.Fatal(err)
	}
	if err := export(t, started, engines["stopped"].APIKey).knows("before stopped"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"stays", "stopped", "rotated"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	s.wantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// The note of a storm that ended under another leader is taken away by whoever leads
// next, also when it has led before.
func TestStormNoteOfAnotherLeader(t *testing.T) {
	t.Parallel()
	prefix := "stormnote/"
	startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	s := openStores(t, shared)
	leads := func() (id string) {
		eventually(t, "a replica leads", func() (err error) {
			if id, err = s.leader(prefix); err == nil && id == "" {
				err = errors.New("none")
			}
			return err
		})
		return id
	}
	for range 2 {
		note := &consul.KVPair{Key: prefix + "storm", Value: []byte(`{"began": "2026-11-24T06:19:48Z", "audit_id": 1}`)}
		if _, err := s.consul.KV().Put(note, nil); err != nil {
			t.Fatal(err)
		}
		s.endSession(prefix, leads())
		eventually(t, "the note is gone", func() error {
			pair, _, err := s.consul.KV().Get(note.Key, nil)
			if err == nil && pair != nil {
				err = errors.New("it is there")
			}
			return err
		})
	}
}
