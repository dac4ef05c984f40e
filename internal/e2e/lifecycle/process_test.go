package lifecycle

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestOneProcessPerBrain stops an engine that takes 5 s to end and starts it at once: the
// two processes never overlap on the brain.
func TestOneProcessPerBrain(t *testing.T) { harness.EachDriver(t, testOneProcessPerBrain) }

func testOneProcessPerBrain(t *testing.T, d harness.Driver) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, d.With(nil))
	c := r.Product(t, harness.AnyImage)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", d.Image("term-delay-5s"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	stopped := make(chan error, 1)
	go func() { stopped <- harness.ErrOf(c.Stop(ctx, "u")) }()
	harness.Eventually(t, "the engine starts again", func() error {
		_, err := c.Start(ctx, "u")
		var bad *client.Error
		if errors.As(err, &bad) && (bad.Code == "ENGINE_BUSY" || bad.Code == "ENGINE_ALREADY_RUNNING") {
			return err
		}
		if err != nil {
			t.Fatalf("start while it dies: %v", err)
		}
		return nil
	})
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	got, err := c.Engine(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	m := harness.Export(t, got, e.APIKey)
	if err := m.Knows("kept"); err != nil {
		t.Fatal(err)
	}
	if len(m.Runs) != 2 {
		t.Fatalf("%d processes were on the brain, want 2: %+v", len(m.Runs), m.Runs)
	}
	slices.SortFunc(m.Runs, func(a, b struct {
		PID       int        `json:"pid"`
		StartedAt time.Time  `json:"started_at"`
		EndedAt   *time.Time `json:"ended_at"`
	}) int {
		return a.StartedAt.Compare(b.StartedAt)
	})
	if first := m.Runs[0]; first.EndedAt == nil || first.EndedAt.After(m.Runs[1].StartedAt) {
		t.Fatalf("the processes overlapped: %+v", m.Runs)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// TestStopOfAnEngineThatIgnoresSIGTERM: it is killed with SIGKILL after the grace period. A
// destroy has the same grace period, and waits for the end as a stop does.
func TestStopOfAnEngineThatIgnoresSIGTERM(t *testing.T) {
	harness.EachDriver(t, testStopOfAnEngineThatIgnoresSIGTERM)
}

func testStopOfAnEngineThatIgnoresSIGTERM(t *testing.T, d harness.Driver) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, d.With(nil))
	c := r.Product(t, harness.AnyImage)
	ctx := t.Context()
	if _, err := c.Provision(ctx, "destroyed", d.Image("ignore-sigterm")); err != nil {
		t.Fatal(err)
	}
	e, err := c.Provision(ctx, "stopped", d.Image("ignore-sigterm"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "acknowledged before the kill")
	destroyed := make(chan error, 1)
	go func() { destroyed <- harness.ErrOf(c.Destroy(ctx, "destroyed")) }()
	_, err = c.Stop(ctx, "stopped")
	if err := errors.Join(err, <-destroyed); err != nil {
		t.Fatal(err)
	}
	if _, err := harness.EngineCall(ctx, e, e.APIKey, http.MethodGet, "/health", nil, nil); err == nil {
		t.Fatal("it still responds")
	}
	started, err := c.Start(ctx, "stopped")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, e.APIKey).Knows("acknowledged before the kill"); err != nil {
		t.Fatal(err)
	}
	started.APIKey = e.APIKey
	harness.CrashEngine(t, started) // an ended process needs no grace period
	if _, err := c.Destroy(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
}

// TestRotation covers an engine that is restarted, one that reloads, and one whose old
// process keeps serving on the port with the old key.
func TestRotation(t *testing.T) { harness.EachDriver(t, testRotation) }

func testRotation(t *testing.T, d harness.Driver) {
	t.Parallel()
	for name, tc := range map[string]struct{ image, reload string }{
		"restart":                         {"", "restart"},
		"reload":                          {"reload", "signal"},
		"an old process that still holds": {"linger-3s", "restart"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := harness.StartService(t, harness.Shared, d.With(map[string]string{"ORCH_ENGINE_KEY_RELOAD": tc.reload}))
			c := r.Product(t, harness.AnyImage)
			ctx := t.Context()
			e, err := c.Provision(ctx, "u", d.Image(tc.image))
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, "before")
			old := e.APIKey
			for range 3 {
				key, err := c.RotateKey(ctx, "u")
				if err != nil {
					t.Fatal(err)
				}
				// What the response promises holds immediately.
				if status, err := harness.EngineCall(ctx, e, old, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusUnauthorized {
					t.Fatalf("old key: status %d, %v; want 401", status, err)
				}
				if err := harness.Export(t, e, key).Knows("before"); err != nil {
					t.Fatal(err)
				}
				got, err := c.Engine(ctx, "u")
				if err != nil || got.APIKey != key || got.URL != e.URL || got.Status != "running" {
					t.Fatalf("after rotation: %+v, %v", got, err)
				}
				old = key
			}
			s := harness.OpenStores(t, harness.Shared)
			meta, err := s.Vault.Logical().Read(s.MountWith(e.EngineID) + "/metadata/engines/" + e.EngineID)
			if err != nil {
				t.Fatal(err)
			}
			for version, v := range meta.Data["versions"].(map[string]any) {
				if destroyed := v.(map[string]any)["destroyed"].(bool); destroyed != (version != "4") {
					t.Errorf("version %s of the key: destroyed is %v", version, destroyed)
				}
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
