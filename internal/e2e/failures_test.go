package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

var anyImage = map[string]any{"allowed_images": []string{"*", "*/*"}}

func TestBootFailures(t *testing.T) { eachDriver(t, testBootFailures) }

func testBootFailures(t *testing.T, d driver) {
	t.Parallel()
	r := startService(t, shared, d.with(map[string]string{"ORCH_BOOT_TIMEOUT_S": "8"}))
	c := r.product(t, anyImage)
	for _, tc := range []struct {
		image  string
		status int
		code   string
		reason string
		atOnce bool // said well before the boot deadline
		names  string
	}{
		{d.image("exit-at-start"), 502, "ENGINE_BOOT_FAILED", "crashed", true, "Exit Code: 1"},
		{d.image("v404"), 502, "ENGINE_BOOT_FAILED", "image_error", true, d.image("v404")},
		{d.image("never-listen"), 504, "BOOT_TIMEOUT", "boot_timeout", false, ""},
		{d.image("fail-health"), 504, "BOOT_TIMEOUT", "boot_timeout", false, ""},
		{d.image("hang"), 504, "BOOT_TIMEOUT", "boot_timeout", false, ""},
	} {
		t.Run(tc.image, func(t *testing.T) {
			t.Parallel()
			ctx, user := t.Context(), "user of "+tc.image
			_, err := c.Provision(ctx, user, tc.image)
			e := wantCode(t, err, tc.status, tc.code)
			if !strings.Contains(e.Message, tc.names) {
				t.Errorf("message %q does not carry the cluster's reason %q", e.Message, tc.names)
			}
			if strings.Contains(e.Message, binDir) || strings.Contains(e.Message, "127.0.0.1") {
				t.Errorf("message %q shows a path or an address", e.Message)
			}
			got, err := c.Engine(ctx, user)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != "failed" || got.Reason != tc.reason || got.APIKey == "" || got.URL != "" {
				t.Fatalf("after %s: %+v", tc.code, got)
			}
			// Start tries again, with the same brain and key.
			_, err = c.Start(ctx, user)
			wantCode(t, err, tc.status, tc.code)
			again, err := c.Engine(ctx, user)
			if err != nil || again.EngineID != got.EngineID || again.APIKey != got.APIKey || again.Status != "failed" {
				t.Fatalf("after a second try: %+v, %v", again, err)
			}
			_, err = c.RotateKey(ctx, user)
			wantCode(t, err, 409, "ENGINE_NOT_RUNNING")
			// A failed engine can be stopped.
			if _, err := c.Stop(ctx, user); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Fatal(err)
			}
			if left := openStores(t, shared).traces(got.EngineID); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

func TestBootFailureIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, map[string]string{"ORCH_BOOT_TIMEOUT_S": "120"})
	c := r.product(t, anyImage)
	// The deadline is the assertion: a service that waited for the boot timeout
	// would answer after it.
	timer := time.AfterFunc(60*time.Second, func() { panic("a failed boot was not said at once") })
	defer timer.Stop()
	_, err := c.Provision(t.Context(), "u", "reference-engine.exit-at-start")
	wantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// TestOutOfMemory: an engine that the kernel ends at its memory limit says so, whenever
// that is.
func TestOutOfMemory(t *testing.T) {
	needDocker(t)
	t.Parallel()
	r := startService(t, shared, docker.with(nil))
	c, ctx := r.product(t, anyImage), t.Context()
	refused := wantCode(t, second(c.Provision(ctx, "boots", docker.image("eat-memory"))), 502, "ENGINE_BOOT_FAILED")
	if !strings.Contains(refused.Message, "memory limit") {
		t.Errorf("it is told %q", refused.Message)
	}
	isNow(t, c, "boots", "failed", "out_of_memory")
	if e, err := c.Engine(ctx, "boots"); err != nil || e.LastOperation == nil || !strings.Contains(e.LastOperation.Message, "memory limit") {
		t.Errorf("its last operation is %+v, %v", e.LastOperation, err)
	}
	if _, err := c.Provision(ctx, "runs", docker.image("eat-memory-3s")); err != nil {
		t.Fatal(err)
	}
	awaitEngine(t, c, "runs", "failed", "out_of_memory")
	entries, _ := auditLog(t, c, "?action=health_failed&user_id=runs")
	if len(entries) == 0 || entries[len(entries)-1].Metadata["reason"] != "out_of_memory" {
		t.Errorf("the audit log has %+v", entries)
	}
	for _, user := range []string{"boots", "runs"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// TestPortExhaustion runs two nodes with two ports each: the fifth engine has
// no port anywhere, and Nomad says so.
func TestPortExhaustion(t *testing.T) { eachDriver(t, testPortExhaustion) }

func testPortExhaustion(t *testing.T, d driver) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{DynamicPorts: [2]int{0, 2}, ExtraClients: 1, DockerSocket: os.Getenv("DOCKER_HOST")})
	const prefix = "ports/"
	r := startService(t, stack, d.with(map[string]string{"ORCH_CONSUL_PREFIX": prefix}))
	c := r.product(t, map[string]any{"max_engines": 5})
	ctx, s := t.Context(), openStores(t, stack)
	for i := range 4 {
		if _, err := c.Provision(ctx, fmt.Sprint("u", i), ""); err != nil {
			t.Fatalf("engine %d of 4: %v", i+1, err)
		}
	}
	before := s.census(prefix)
	e := wantCode(t, second(c.Provision(ctx, "one-too-many", "")), 503, "PORT_EXHAUSTION")
	if !strings.Contains(e.Message, "port") {
		t.Errorf("message %q", e.Message)
	}
	s.wantCensus(prefix, before)
	_, err := c.Engine(ctx, "one-too-many")
	wantCode(t, err, 404, "ENGINE_NOT_FOUND")

	// A start that finds no port goes back to where it was.
	if _, err := c.Stop(ctx, "u0"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Provision(ctx, "takes-the-port", ""); err != nil {
		t.Fatal(err)
	}
	_, err = c.Start(ctx, "u0")
	wantCode(t, err, 503, "PORT_EXHAUSTION")
	if got, err := c.Engine(ctx, "u0"); err != nil || got.Status != "stopped" {
		t.Fatalf("after a start without a port: %+v, %v", got, err)
	}
	// An admit hears the same as a provision.
	roomy := r.product(t, nil)
	wantCode(t, second(admit(ctx, roomy, "one-too-many", true, false)), 503, "PORT_EXHAUSTION")
	wantCode(t, second(roomy.Engine(ctx, "one-too-many")), 404, "ENGINE_NOT_FOUND")
	// The quota comes before the cluster's room.
	_, err = c.Provision(ctx, "over-quota", "")
	wantCode(t, err, 429, "QUOTA_EXCEEDED")
	// Once a port is free, the start works.
	if _, err := c.Destroy(ctx, "takes-the-port"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, "u0"); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestCapacityExhaustion(t *testing.T) {
	t.Parallel()
	const prefix = "capacity/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0"})
	s, ctx := openStores(t, shared), t.Context()
	for name, tc := range map[string]struct {
		policy map[string]any
		says   string
	}{
		"memory":    {map[string]any{"memory_mb": 100_000_000}, "memory"},
		"cpu":       {map[string]any{"cpu_mhz": 100_000_000}, "cpu"},
		"node pool": {map[string]any{"node_pool": "no-such-pool"}, "no eligible node"},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.product(t, tc.policy)
			_, err := c.Provision(ctx, "u", "")
			if e := wantCode(t, err, 503, "CAPACITY_EXHAUSTED"); !strings.Contains(e.Message, tc.says) {
				t.Errorf("message %q does not name %q", e.Message, tc.says)
			}
			_, err = c.Engine(ctx, "u")
			wantCode(t, err, 404, "ENGINE_NOT_FOUND")
			if rows := s.rows(prefix); len(rows) > 0 {
				t.Errorf("rows are left: %v", rows)
			}
		})
	}
}

func TestImagesAreAllowedByPolicyAlone(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, nil)
	ctx := t.Context()
	c := r.product(t, map[string]any{"engine_image": "reference-engine.v2", "allowed_images": []string{"reference-engine.slow-*"}})
	_, err := c.Provision(ctx, "u", "reference-engine.exit-at-start")
	wantCode(t, err, http.StatusForbidden, "POLICY_DENIED")
	for _, path := range []string{"../reference-engine", "/bin/sh", "a/b", "", "${env[\"HOME\"]}", "x y"} {
		err := c.Do(ctx, http.MethodPost, "/engines/provision", map[string]any{"user_id": "u", "engine_version": path}, nil)
		wantCode(t, err, http.StatusBadRequest, "INVALID_REQUEST")
	}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Engine(ctx, "u"); err != nil || got.EngineVersion != "reference-engine.v2" {
		t.Fatalf("the policy's image is not honoured: %+v, %v", got, err)
	}
	// The service's default is always allowed.
	if _, err := c.Provision(ctx, "u2", "reference-engine"); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{e.UserID, "u2"} {
		if _, err := c.Destroy(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
}
