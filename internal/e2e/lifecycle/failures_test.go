package lifecycle

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestBootFailures(t *testing.T) { harness.EachDriver(t, testBootFailures) }

func testBootFailures(t *testing.T, d harness.Driver) {
	t.Parallel()
	// Only boots that end by their deadline have a short one: a busy docker daemon needs
	// longer than 8 s to start a container that exits.
	const usual, short = "60", "8"
	products := map[string]*client.Client{}
	for _, seconds := range []string{usual, short} {
		r := harness.StartService(t, harness.Shared, d.With(map[string]string{"ORCH_BOOT_TIMEOUT_S": seconds}))
		products[seconds] = r.Product(t, harness.AnyImage)
	}
	for _, tc := range []struct {
		image   string
		timeout string
		status  int
		code    string
		reason  string
		names   string
	}{
		{d.Image("exit-at-start"), usual, 502, "ENGINE_BOOT_FAILED", "crashed", "Exit Code: 1"},
		{d.Image("v404"), usual, 502, "ENGINE_BOOT_FAILED", "image_error", d.Image("v404")},
		{d.Image("never-listen"), short, 504, "BOOT_TIMEOUT", "boot_timeout", ""},
		{d.Image("fail-health"), short, 504, "BOOT_TIMEOUT", "boot_timeout", ""},
		{d.Image("hang"), short, 504, "BOOT_TIMEOUT", "boot_timeout", ""},
	} {
		t.Run(tc.image, func(t *testing.T) {
			t.Parallel()
			c, ctx, user := products[tc.timeout], t.Context(), "user of "+tc.image
			_, err := c.Provision(ctx, user, tc.image)
			e := harness.WantCode(t, err, tc.status, tc.code)
			if !strings.Contains(e.Message, tc.names) {
				t.Errorf("message %q does not carry the cluster's reason %q", e.Message, tc.names)
			}
			if strings.Contains(e.Message, harness.BinDir) || strings.Contains(e.Message, "127.0.0.1") {
				t.Errorf("message %q shows a path or an address", e.Message)
			}
			got, err := c.Engine(ctx, user)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != "failed" || got.Reason != tc.reason || got.APIKey == "" || got.URL != "" {
				t.Fatalf("after %s: %+v", tc.code, got)
			}
			// A start retries, with the same brain and key.
			_, err = c.Start(ctx, user)
			harness.WantCode(t, err, tc.status, tc.code)
			again, err := c.Engine(ctx, user)
			if err != nil || again.EngineID != got.EngineID || again.APIKey != got.APIKey || again.Status != "failed" {
				t.Fatalf("after a second try: %+v, %v", again, err)
			}
			_, err = c.RotateKey(ctx, user)
			harness.WantCode(t, err, 409, "ENGINE_NOT_RUNNING")
			// A failed engine can be stopped.
			if _, err := c.Stop(ctx, user); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Fatal(err)
			}
			if left := harness.OpenStores(t, harness.Shared).Traces(got.EngineID); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

func TestBootFailureIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_BOOT_TIMEOUT_S": "900"})
	c := r.Product(t, harness.AnyImage)
	// The deadline is the assertion: a service that waited for the boot timeout would
	// respond after it.
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	_, err := c.Provision(ctx, "u", "reference-engine.exit-at-start")
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// TestOutOfMemory: an engine that the kernel ends at its memory limit has that reason,
// whenever it happens.
func TestOutOfMemory(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.Docker.With(nil))
	c, ctx := r.Product(t, harness.AnyImage), t.Context()
	refused := harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "boots", harness.Docker.Image("eat-memory"))), 502, "ENGINE_BOOT_FAILED")
	if !strings.Contains(refused.Message, "memory limit") {
		t.Errorf("it got %q", refused.Message)
	}
	harness.IsNow(t, c, "boots", "failed", "out_of_memory")
	if e, err := c.Engine(ctx, "boots"); err != nil || e.LastOperation == nil || !strings.Contains(e.LastOperation.Message, "memory limit") {
		t.Errorf("its last operation is %+v, %v", e.LastOperation, err)
	}
	if _, err := c.Provision(ctx, "runs", harness.Docker.Image("eat-memory-10s")); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, c, "runs", "failed", "out_of_memory")
	entries, _ := harness.AuditLog(t, c, "?action=health_failed&user_id=runs")
	if len(entries) == 0 || entries[len(entries)-1].Metadata["reason"] != "out_of_memory" {
		t.Errorf("the audit log has %+v", entries)
	}
	for _, user := range []string{"boots", "runs"} {
		if err := harness.Patiently(t, "a destroy", func() error { return harness.ErrOf(c.Destroy(ctx, user)) }); err != nil {
			t.Error(err)
		}
	}
}

// TestPortExhaustion runs two nodes with two ports each: the fifth engine finds no port,
// and Nomad reports that.
func TestPortExhaustion(t *testing.T) { harness.EachDriver(t, testPortExhaustion) }

func testPortExhaustion(t *testing.T, d harness.Driver) {
	t.Parallel()
	stack := harness.OwnStack(t, devstack.Config{DynamicPorts: [2]int{0, 2}, ExtraClients: 1, DockerSocket: os.Getenv("DOCKER_HOST")})
	const prefix = "ports/"
	r := harness.StartService(t, stack, d.With(map[string]string{"ORCH_CONSUL_PREFIX": prefix}))
	c := r.Product(t, map[string]any{"max_engines": 5})
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	for i := range 4 {
		if _, err := c.Provision(ctx, fmt.Sprint("u", i), ""); err != nil {
			t.Fatalf("engine %d of 4: %v", i+1, err)
		}
	}
	before := s.Census(prefix)
	e := harness.WantCode(t, harness.ErrOf(c.Provision(ctx, "one-too-many", "")), 503, "PORT_EXHAUSTION")
	if !strings.Contains(e.Message, "port") {
		t.Errorf("message %q", e.Message)
	}
	s.WantCensus(prefix, before)
	_, err := c.Engine(ctx, "one-too-many")
	harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")

	// A start that finds no port leaves the engine as it was.
	if _, err := c.Stop(ctx, "u0"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Provision(ctx, "takes-the-port", ""); err != nil {
		t.Fatal(err)
	}
	_, err = c.Start(ctx, "u0")
	harness.WantCode(t, err, 503, "PORT_EXHAUSTION")
	if got, err := c.Engine(ctx, "u0"); err != nil || got.Status != "stopped" {
		t.Fatalf("after a start without a port: %+v, %v", got, err)
	}
	// An admit gets the same error as a provision.
	roomy := r.Product(t, nil)
	harness.WantCode(t, harness.ErrOf(harness.Admit(ctx, roomy, "one-too-many", true, false)), 503, "PORT_EXHAUSTION")
	harness.WantCode(t, harness.ErrOf(roomy.Engine(ctx, "one-too-many")), 404, "ENGINE_NOT_FOUND")
	// The quota is checked before the cluster's capacity.
	_, err = c.Provision(ctx, "over-quota", "")
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	// Once a port is free, the start works.
	if _, err := c.Destroy(ctx, "takes-the-port"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, "u0"); err != nil {
		t.Fatal(err)
	}
}

func TestCapacityExhaustion(t *testing.T) {
	t.Parallel()
	const prefix = "capacity/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	for name, tc := range map[string]struct {
		policy map[string]any
		says   string
	}{
		"memory":    {map[string]any{"memory_mb": 100_000_000}, "memory"},
		"cpu":       {map[string]any{"cpu_mhz": 100_000_000}, "cpu"},
		"node pool": {map[string]any{"node_pool": "no-such-pool"}, "no eligible node"},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.Product(t, tc.policy)
			_, err := c.Provision(ctx, "u", "")
			if e := harness.WantCode(t, err, 503, "CAPACITY_EXHAUSTED"); !strings.Contains(e.Message, tc.says) {
				t.Errorf("message %q does not name %q", e.Message, tc.says)
			}
			_, err = c.Engine(ctx, "u")
			harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
			if rows := s.Rows(prefix); len(rows) > 0 {
				t.Errorf("rows are left: %v", rows)
			}
		})
	}
}

func TestImagesAreAllowedByPolicyAlone(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	ctx := t.Context()
	c := r.Product(t, map[string]any{"engine_image": "reference-engine.v2", "allowed_images": []string{"reference-engine.slow-*"}})
	_, err := c.Provision(ctx, "u", "reference-engine.exit-at-start")
	harness.WantCode(t, err, http.StatusForbidden, "POLICY_DENIED")
	for _, path := range []string{"../reference-engine", "/bin/sh", "a/b", "", "${env[\"HOME\"]}", "x y"} {
		err := c.Do(ctx, http.MethodPost, "/engines/provision", map[string]any{"user_id": "u", "engine_version": path}, nil)
		harness.WantCode(t, err, http.StatusBadRequest, "INVALID_REQUEST")
	}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Engine(ctx, "u"); err != nil || got.EngineVersion != "reference-engine.v2" {
		t.Fatalf("the policy's image is not honoured: %+v, %v", got, err)
	}
	// The service's default image is always allowed.
	if _, err := c.Provision(ctx, "u2", "reference-engine"); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{e.UserID, "u2"} {
		if _, err := c.Destroy(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
}
