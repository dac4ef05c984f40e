// Package unreached tests a service in a network where it cannot connect to engines. Its
// agents are on hosts of their own, in network namespaces.
package unreached

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// The ports of engines in a devstack.Cluster.
const firstPort, lastPort = 20000, 20999

// The hosts of the services. Only the open one can connect to engines.
const (
	dropping  = "dropping"
	rejecting = "rejecting"
	open      = "open"
)

// TestMain runs everything in a network namespace of its own.
func TestMain(m *testing.M) {
	flag.Parse()
	if devstack.NeedIsolation() != nil {
		os.Exit(m.Run()) // start reports it
	}
	inside, code, err := devstack.Isolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if !inside {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// cluster is a cluster with hosts for services.
type cluster struct {
	*devstack.Cluster
	t    *testing.T
	orch string // the executable
	mu   sync.Mutex
}

// start starts a cluster, and skips the test if that is not possible; in CI it fails.
func start(t *testing.T) *cluster {
	t.Helper()
	if err := devstack.NeedIsolation(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	harness.BinDir = filepath.Join(t.TempDir(), "engines")
	if err := harness.BuildEngines(harness.BinDir); err != nil {
		t.Fatal(err)
	}
	orch, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	c, err := devstack.StartCluster(t.Context(), devstack.Config{Locked: harness.Locked, Progress: func(line string) { t.Log(line) }}, dropping, rejecting, open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	if err := errors.Join(c.Network.Deny(dropping, firstPort, lastPort, true), c.Network.Deny(rejecting, firstPort, lastPort, false)); err != nil {
		t.Fatal(err)
	}
	return &cluster{Cluster: c, t: t, orch: orch}
}

// prefixOf returns the registry prefix of a service.
func prefixOf(host, detection string, port int) string {
	return fmt.Sprintf("%s-%s-%d/", host, detection, port)
}

// serve runs a service on a host, and returns a client with its admin key.
func (c *cluster) serve(t *testing.T, host, detection string, port int, more ...string) *client.Client {
	t.Helper()
	prefix := prefixOf(host, detection, port)
	name := strings.TrimSuffix(prefix, "/")
	c.mu.Lock()
	defer c.mu.Unlock() // the cluster's components are started one after the other
	access, mount := harness.Deploy(t, c.Stack, prefix)
	scheme := "http"
	if !access.Open() {
		scheme = "https"
	}
	access.ConsulAddr = scheme + "://127.0.0.1:8500"
	addr := fmt.Sprintf("%s:%d", c.Network.Addr(host), port)
	env := append(append(access.Environ(),
		"ORCH_ADDR="+addr, "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_ALLOW_HTTP=true", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY="+harness.AdminKey, "ORCH_CONSUL_PREFIX="+prefix,
		"ORCH_DATABASE_URL=sqlite://"+filepath.Join(t.TempDir(), "audit.db"),
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR="+harness.BinDir, "ORCH_ENGINE_LOGS=driver",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=2", "ORCH_LOG_LEVEL=debug",
		"ORCH_SNAPSHOT_URL="+harness.SnapshotURL(t, c.Stack, prefix),
		"ORCH_VAULT_MOUNT="+mount, "ORCH_NOMAD_NAMESPACE="+c.Namespace, "ORCH_ALLOW_OPEN_NOMAD="+strconv.FormatBool(access.Open()),
		"ORCH_BOOT_DETECTION="+detection, "ORCH_HEALTH_CHECK_INTERVAL_S=2", "ORCH_HEALTH_CHECK_TIMEOUT_S=2", "ORCH_HEALTH_MAX_FAILURES=2",
		"ORCH_RESTART_BACKOFF_BASE_S=1", "ORCH_RESTART_BACKOFF_MAX_S=2", "ORCH_IDLE_TIMEOUT_S=0",
	), more...)
	if err := c.Run(devstack.Component(name), host, c.orch, []string{"server"}, env); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.Kill(devstack.Component(name)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(c.LogFile(devstack.Component(name)))
			t.Logf("log of %s:\n%s", name, harness.Tail(string(log), 8000))
		}
	})
	admin := &client.Client{BaseURL: "http://" + addr, AdminKey: harness.AdminKey}
	harness.Eventually(t, "the service is ready", func() error { return admin.Ready(context.Background()) })
	return admin
}

// product registers a product.
func product(t *testing.T, admin *client.Client, slug string, policy map[string]any) *client.Client {
	t.Helper()
	p, err := admin.RegisterProduct(t.Context(), slug, "Test product", harness.PolicyOf(t, policy))
	if err != nil {
		t.Fatal(err)
	}
	return &client.Client{BaseURL: admin.BaseURL, PlatformKey: p.PlatformAPIKey}
}
