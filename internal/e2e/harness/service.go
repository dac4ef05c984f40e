package harness

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
)

// AdminKey is the admin key of every service under test.
const AdminKey = "admin-key-of-the-tests"

// ProviderKey is the key of a model provider that the services pass on to engines.
const ProviderKey = "sk-provider-secret-of-the-tests"

// Replica is a service under test, with its log.
type Replica struct {
	*service.Service
	URL  string
	Logs *LogBuffer
	Stop func()
}

// StartService runs a replica on a stack. vars adds to its configuration or replaces parts
// of it. Each test uses a separate registry prefix.
func StartService(t *testing.T, stack *devstack.Stack, vars map[string]string) *Replica {
	t.Helper()
	all := map[string]string{
		"ORCH_ADDR": "127.0.0.1:0", "ORCH_OPS_ADDR": "127.0.0.1:0", "ORCH_DRAIN_DELAY_S": "0", "ORCH_WRONG_KEYS_PER_MINUTE": "0", "ORCH_ADMIN_KEY": AdminKey, "ORCH_ENGINE_DRIVER": "raw_exec",
		"ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": BinDir, "ORCH_VOLUME_POOL": "2", "ORCH_DRILLS_PER_DAY": "0",
		"ORCH_ENGINE_LOGS":            "driver", // one process less per engine
		"ORCH_RESTART_BACKOFF_BASE_S": "300",    // failed engines stay failed, except in tests of restarts
		"ORCH_ENGINE_CPU_MHZ":         "10", "ORCH_ENGINE_MEMORY_MB": "32", "ORCH_LOG_LEVEL": "trace",
		"ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY", "LLM_API_KEY": ProviderKey,
	}
	if _, ok := vars["ORCH_CONSUL_PREFIX"]; !ok {
		all["ORCH_CONSUL_PREFIX"] = "t-" + strings.ToLower(rand.Text()[:10]) + "/"
	}
	all["ORCH_DATABASE_URL"] = "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
	for k, v := range vars {
		all[k] = v
	}
	access, mount := Deploy(t, stack, all["ORCH_CONSUL_PREFIX"])
	all["ORCH_SNAPSHOT_URL"] = cmp.Or(all["ORCH_SNAPSHOT_URL"], SnapshotURL(t, stack, all["ORCH_CONSUL_PREFIX"]))
	access.ConsulAddr = cmp.Or(all["CONSUL_HTTP_ADDR"], access.ConsulAddr)
	access.VaultToken = cmp.Or(all["VAULT_TOKEN"], access.VaultToken)
	all["ORCH_VAULT_MOUNT"], all["ORCH_NOMAD_NAMESPACE"], all["ORCH_ALLOW_OPEN_NOMAD"] = mount, stack.Namespace, strconv.FormatBool(access.Open())
	environ := make([]string, 0, len(all))
	for k, v := range all {
		environ = append(environ, k+"="+v)
	}
	cfg, err := config.Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	logs := &LogBuffer{}
	var out io.Writer = logs
	if os.Getenv("ORCH_TEST_LOG") != "" {
		out = io.MultiWriter(logs, os.Stderr)
	}
	svc, err := service.New(t.Context(), cfg, service.Clients(access), hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: out}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	r := &Replica{Service: svc, URL: "http://" + svc.Server.Addr().String(), Logs: logs}
	r.Stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("service ended with %v", err)
		}
	})
	if undisturbed(stack) && all["CONSUL_HTTP_ADDR"] == "" {
		_, hurt := vars["ORCH_DATABASE_URL"]
		calls.with(t, svc.Server.Addr().String(), !hurt)
	}
	t.Cleanup(func() {
		r.Stop()
		for _, problem := range documented.Take(svc.Server.Addr().String()) {
			t.Errorf("not as documented: %s", problem)
		}
		if t.Failed() {
			t.Logf("log of the service:\n%s", Tail(logs.String(), 8000))
		}
	})
	Eventually(t, "the service is ready", func() error {
		return (&client.Client{BaseURL: r.URL}).Ready(t.Context())
	})
	return r
}

// StartReplicas runs n services with one registry.
func StartReplicas(t *testing.T, n int, vars map[string]string) []*Replica {
	t.Helper()
	vars["ORCH_CONSUL_PREFIX"] = "replicas-" + t.Name() + "/"
	var all []*Replica
	for range n {
		all = append(all, StartService(t, Shared, vars))
	}
	return all
}

// Deploy gives the deployment of a prefix its mount in Vault, and returns the access of
// a service to it.
func Deploy(t *testing.T, stack *devstack.Stack, prefix string) (access devstack.Access, mount string) {
	t.Helper()
	mount = MountName(prefix)
	access, err := stack.Deployment(context.Background(), prefix, mount)
	if err != nil {
		t.Fatal(err)
	}
	return access, mount
}

// SnapshotURL returns the snapshot store of the deployment of a prefix: a directory of the
// stack, which is empty at first.
func SnapshotURL(t *testing.T, stack *devstack.Stack, prefix string) string {
	t.Helper()
	dir := filepath.Join(stack.Dir, "snapshots", MountName(prefix))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return (&url.URL{Scheme: "file", Path: dir}).String()
}

// MountName returns the mount in Vault for the deployment of a prefix.
func MountName(prefix string) string {
	return "kv-" + strings.ToLower(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(strings.Trim(prefix, "/"), "-"))
}

// With returns a configuration with additional NAME=value pairs.
func With(vars map[string]string, more ...string) map[string]string {
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

// Soon makes the service react quickly.
var Soon = map[string]string{
	"ORCH_HEALTH_CHECK_INTERVAL_S": "1", "ORCH_HEALTH_CHECK_TIMEOUT_S": "1", "ORCH_HEALTH_MAX_FAILURES": "2",
	"ORCH_RESTART_BACKOFF_BASE_S": "1", "ORCH_RESTART_BACKOFF_MAX_S": "2",
}

// Admin returns a client of the replica with the admin key.
func (r *Replica) Admin() *client.Client { return &client.Client{BaseURL: r.URL, AdminKey: AdminKey} }

// Product registers a product and returns a client with its key.
func (r *Replica) Product(t *testing.T, policy map[string]any) *client.Client {
	t.Helper()
	slug := "p-" + strings.ToLower(rand.Text()[:12])
	p, err := (&client.Client{BaseURL: r.URL, AdminKey: AdminKey}).RegisterProduct(t.Context(), slug, "Test product", PolicyOf(t, policy))
	if err != nil {
		t.Fatal(err)
	}
	return &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
}

// PolicyOf converts a policy to the client's type.
func PolicyOf(t *testing.T, fields map[string]any) *client.Policy {
	t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	policy := new(client.Policy)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(policy); err != nil {
		t.Fatal(err)
	}
	return policy
}

// AnyImage is a policy that allows every image.
var AnyImage = map[string]any{"allowed_images": []string{"*", "*/*"}}

// At returns a client of the same product that calls another replica.
func At(c *client.Client, r *Replica) *client.Client {
	return &client.Client{BaseURL: r.URL, PlatformKey: c.PlatformKey, AdminKey: c.AdminKey}
}

// ProductOf returns the id of the only product.
func ProductOf(t *testing.T, admin, c *client.Client) string {
	t.Helper()
	list, err := admin.Products(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Products) != 1 {
		t.Fatalf("%d products, want one", len(list.Products))
	}
	return list.Products[0].ProductID
}

// Unreachable returns all unreachable volumes by engine_id.
func (r *Replica) Unreachable(t *testing.T) map[string]client.UnreachableVolume {
	t.Helper()
	list, err := r.Admin().UnreachableVolumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unreachable := map[string]client.UnreachableVolume{}
	for _, g := range list.UnreachableVolumes {
		unreachable[g.EngineID] = g
	}
	return unreachable
}

// Passes returns how many full passes the replica has made.
func (r *Replica) Passes() int { return r.Logs.Passes() }
