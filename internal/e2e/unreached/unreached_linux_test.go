package unreached

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// An engine goes through its whole life although its service cannot connect to it.
func TestUnreachedEngines(t *testing.T) {
	c := start(t)
	for i, at := range []struct{ host, detection string }{{dropping, "either"}, {dropping, "consul"}, {rejecting, "either"}} {
		t.Run(at.host+"/"+at.detection, func(t *testing.T) {
			t.Parallel()
			admin := c.serve(t, at.host, at.detection, 8000+i)
			t.Run("Lifecycle", func(t *testing.T) { lifecycle(t, product(t, admin, "life", nil)) })
			t.Run("Sleep", func(t *testing.T) {
				sleep(t, product(t, admin, "idle", map[string]any{"idle_timeout_s": 1, "allowed_images": []string{"*"}}))
			})
			t.Run("Failures", func(t *testing.T) {
				failures(t, c.Stack, product(t, admin, "failing", map[string]any{"engine_image": "reference-engine.fail-health-file"}))
			})
		})
	}
}

func lifecycle(t *testing.T, c *client.Client) {
	ctx := t.Context()
	began := time.Now()
	made, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("provisioned after %s", time.Since(began).Round(time.Millisecond))
	harness.KeyIs(t, made, made.APIKey, true)
	harness.Remember(t, made, made.APIKey, "before")
	admitted := admit(t, c, "u", false)
	if admitted.APIKey != made.APIKey || admitted.URL != made.URL {
		t.Errorf("admitted to %s, provisioned at %s", admitted.URL, made.URL)
	}
	old := made.APIKey
	for range 2 {
		began = time.Now()
		key, err := c.RotateKey(ctx, "u")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("rotated after %s", time.Since(began).Round(time.Millisecond))
		harness.KeyIs(t, made, key, true)
		harness.KeyIs(t, made, old, false)
		if now := admit(t, c, "u", false); now.APIKey != key || now.URL != made.URL {
			t.Errorf("admitted to %s with another key than the new one, before it was at %s", now.URL, made.URL)
		}
		old = key
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	e := harness.IsNow(t, c, "u", "running", "")
	harness.KeyIs(t, e, e.APIKey, true)
	memory := harness.Export(t, e, e.APIKey)
	if err := memory.Knows("before"); err != nil {
		t.Error(err)
	}
	harness.CrashEngine(t, e)
	harness.Eventually(t, "it runs as another process", func() error {
		e, err := harness.EngineIs(t, c, "u", "running", "")
		if err != nil {
			return err
		}
		var m harness.Memory
		status, err := harness.EngineCall(ctx, e, e.APIKey, http.MethodGet, "/memory/export", nil, &m)
		if err != nil || status != http.StatusOK || len(m.Runs) <= len(memory.Runs) {
			return fmt.Errorf("%d, %d runs, %w", status, len(m.Runs), err)
		}
		return nil
	})
	// The service knows that, too: it was failed meanwhile, or the restart is in the audit log.
	harness.Eventually(t, "the restart is audited", func() error {
		log, err := c.Audit(ctx, client.AuditFilter{Action: "auto_restart_start"})
		if err == nil && len(log.Entries) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
	harness.AwaitEngine(t, c, "u", "running", "")
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

func sleep(t *testing.T, c *client.Client) {
	ctx := t.Context()
	if _, err := c.Provision(ctx, "busy", "reference-engine.busy"); err != nil {
		t.Fatal(err)
	}
	made, err := c.Provision(ctx, "idle", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, made, made.APIKey, "before")
	for range 2 {
		harness.AwaitEngine(t, c, "idle", "sleeping", "")
		e := admit(t, c, "idle", true)
		harness.KeyIs(t, e, e.APIKey, true)
		if err := harness.Export(t, e, e.APIKey).Knows("before"); err != nil {
			t.Error(err)
		}
	}
	if err := harness.InState(t, c, "busy", "running"); err != nil {
		t.Errorf("an engine that reports that it is busy was put to sleep: %v", err)
	}
	for _, user := range []string{"idle", "busy"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// failures has an engine whose upstream is down, and then its brain: only the second is
// mended by a restart.
func failures(t *testing.T, stack *devstack.Stack, c *client.Client) {
	ctx := t.Context()
	made, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	fail := filepath.Join(brainOf(t, stack, made.EngineID), "fail-health")
	if err := os.WriteFile(fail, []byte("provider"), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, c, "u", "running", "upstream_down")
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it recovers", func() error {
		e, err := harness.EngineIs(t, c, "u", "running", "")
		if err == nil && e.Reason != "" {
			err = fmt.Errorf("it is %s", e.Reason)
		}
		return err
	})
	if err := os.WriteFile(fail, []byte("brain"), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, c, "u", "failed", "")
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	e := harness.AwaitEngine(t, c, "u", "running", "")
	harness.KeyIs(t, e, e.APIKey, true)
	if err := harness.Patiently(t, "a destroy", func() error { return harness.ErrOf(c.Destroy(ctx, "u")) }); err != nil {
		t.Fatal(err)
	}
}

// brainOf returns the directory of an engine's volume.
func brainOf(t *testing.T, stack *devstack.Stack, engineID string) string {
	t.Helper()
	volumes := harness.OpenStores(t, stack).Nomad.HostVolumes()
	list, _, err := volumes.List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, stub := range list {
		if stub.Name == "engine-"+engineID {
			v, _, err := volumes.Get(stub.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			return v.HostPath
		}
	}
	t.Fatalf("Nomad has no volume of engine %s", engineID)
	return ""
}

// admit admits a user.
func admit(t *testing.T, c *client.Client, user string, wake bool) *client.Engine {
	t.Helper()
	a, err := harness.Admit(t.Context(), c, user, false, wake)
	if err != nil || !a.Admitted {
		t.Fatalf("%s is not admitted: %+v, %v", user, a, err)
	}
	return a.Engine
}

// figures is how often TestEitherIsNotSlower measures: the pools of three nodes have a
// volume for each.
const figures, figurePort = 25, 8100

// TestEitherIsNotSlower logs how long boots and rotations take with each detection, where
// the service reaches engines.
func TestEitherIsNotSlower(t *testing.T) {
	if os.Getenv("ORCH_TEST_FIGURES") == "" {
		t.Skip("set ORCH_TEST_FIGURES=1 for the figures")
	}
	c := start(t)
	clients := map[string]*client.Client{}
	detections := []string{"probe", "either"}
	for i, detection := range detections {
		clients[detection] = product(t, c.serve(t, open, detection, figurePort+i, "ORCH_VOLUME_POOL=20"), "figures", nil)
	}
	stores := harness.OpenStores(t, c.Stack)
	harness.Eventually(t, "the pools are full", func() error {
		for i, detection := range detections {
			pooled, err := stores.Pooled(prefixOf(open, detection, figurePort+i))
			if err != nil || len(pooled) < figures {
				return fmt.Errorf("%d volumes, %w", len(pooled), err)
			}
		}
		return nil
	})
	took := map[string][]time.Duration{}
	for i := range figures {
		for detection, c := range clients {
			user := fmt.Sprint("u", i)
			for _, step := range []struct {
				name string
				call func() error
			}{
				{"provision", func() error { return harness.ErrOf(c.Provision(t.Context(), user, "")) }},
				{"rotate", func() error { return harness.ErrOf(c.RotateKey(t.Context(), user)) }},
				{"destroy", func() error { return harness.ErrOf(c.Destroy(t.Context(), user)) }},
			} {
				began := time.Now()
				if err := step.call(); err != nil {
					t.Fatal(err)
				}
				took[step.name+", "+detection] = append(took[step.name+", "+detection], time.Since(began))
			}
		}
	}
	for what, times := range took {
		slices.Sort(times)
		t.Logf("%s: median %s, p90 %s", what, times[len(times)/2].Round(time.Millisecond), times[len(times)*9/10].Round(time.Millisecond))
	}
}
