package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
)

const adminKey = "admin-key-of-the-tests"

// replica is a service under test, with what it logged.
type replica struct {
	*service.Service
	url  string
	logs *logBuffer
	stop func()
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startService runs a replica on a stack; vars add to or replace its
// configuration. Each test has a registry prefix of its own.
func startService(t *testing.T, stack *devstack.Stack, vars map[string]string) *replica {
	t.Helper()
	all := map[string]string{
		"ORCH_ADDR": "127.0.0.1:0", "ORCH_ADMIN_KEY": adminKey, "ORCH_ENGINE_DRIVER": "raw_exec",
		"ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": binDir, "ORCH_VOLUME_POOL": "2",
		"ORCH_ENGINE_LOGS":            "driver", // a process less per engine
		"ORCH_RESTART_BACKOFF_BASE_S": "300",    // what failed stays so, but where a test is about restarts
		"ORCH_ENGINE_CPU_MHZ":         "10", "ORCH_ENGINE_MEMORY_MB": "32", "ORCH_LOG_LEVEL": "trace",
		"ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY", "LLM_API_KEY": providerKey,
	}
	if _, ok := vars["ORCH_CONSUL_PREFIX"]; !ok {
		all["ORCH_CONSUL_PREFIX"] = "t-" + strings.ToLower(rand.Text()[:10]) + "/"
	}
	all["ORCH_DATABASE_URL"] = "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
	for k, v := range vars {
		all[k] = v
	}
	vaultToken := all["VAULT_TOKEN"]
	if _, ok := vars["ORCH_VAULT_MOUNT"]; !ok {
		mount, token := mountOf(t, stack, all["ORCH_CONSUL_PREFIX"])
		all["ORCH_VAULT_MOUNT"], vaultToken = mount, cmp.Or(vaultToken, token)
	}
	environ := make([]string, 0, len(all))
	for k, v := range all {
		environ = append(environ, k+"="+v)
	}
	cfg, err := config.Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	logs := &logBuffer{}
	var out io.Writer = logs
	if os.Getenv("ORCH_TEST_LOG") != "" {
		out = io.MultiWriter(logs, os.Stderr)
	}
	svc, err := service.New(t.Context(), cfg, service.Clients{
		NomadAddr: stack.NomadAddr, ConsulAddr: cmp.Or(all["CONSUL_HTTP_ADDR"], stack.ConsulAddr), VaultAddr: stack.VaultAddr, VaultToken: cmp.Or(vaultToken, stack.VaultOrchToken),
	}, hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: out}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	r := &replica{Service: svc, url: "http://" + svc.Server.Addr().String(), logs: logs}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("service ended with %v", err)
		}
	})
	t.Cleanup(func() {
		r.stop()
		for _, problem := range documented.Take(svc.Server.Addr().String()) {
			t.Errorf("not as documented: %s", problem)
		}
		if t.Failed() {
			t.Logf("log of the service:\n%s", tail(logs.String(), 8000))
		}
	})
	eventually(t, "the service is ready", func() error {
		return (&client.Client{BaseURL: r.url}).Ready(t.Context())
	})
	return r
}

// mountOf gives the deployment of a prefix its mount in Vault, and returns a token of
// the service for it.
func mountOf(t *testing.T, stack *devstack.Stack, prefix string) (mount, token string) {
	t.Helper()
	mount = mountName(prefix)
	token, err := stack.Mount(context.Background(), mount)
	if err != nil {
		t.Fatal(err)
	}
	return mount, token
}

// mountName is the mount in Vault of the deployment of a prefix.
func mountName(prefix string) string {
	return "kv-" + strings.ToLower(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(strings.Trim(prefix, "/"), "-"))
}

const providerKey = "sk-provider-secret-of-the-tests"

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// product registers a product and returns a client with its key.
func (r *replica) product(t *testing.T, policy map[string]any) *client.Client {
	t.Helper()
	slug := "p-" + strings.ToLower(rand.Text()[:12])
	p, err := (&client.Client{BaseURL: r.url, AdminKey: adminKey}).RegisterProduct(t.Context(), slug, "Test product", policyOf(t, policy))
	if err != nil {
		t.Fatal(err)
	}
	return &client.Client{BaseURL: r.url, PlatformKey: p.PlatformAPIKey}
}

// policyOf is a policy in the client's own words.
func policyOf(t *testing.T, fields map[string]any) *client.Policy {
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

// patience is the deadline of what the tests wait for: longer than anything takes on
// a machine that has other work, too. How soon something comes is a benchmark's to say.
const patience = 5 * time.Minute

// eventually waits for a condition: nil, with a deadline. It looks again after a
// tenth of the time that it has waited, within bounds: a look may cost the agents
// ten lists, and what takes long is not noticed late for that.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		waited := time.Since(began)
		if waited >= patience {
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(min(max(waited/10, 20*time.Millisecond), 250*time.Millisecond))
	}
}

// wantCode fails unless err is this answer.
func wantCode(t *testing.T, err error, status int, code string) *client.Error {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Status != status || string(e.Code) != code {
		t.Fatalf("got %v, want %d %s", err, status, code)
	}
	if e.RequestID == "" || e.Message == "" {
		t.Fatalf("answer %+v lacks a request id or a message", e)
	}
	if (status == 503 || status == 429) && e.RetryAfter < time.Second {
		t.Fatalf("%d without Retry-After", status)
	}
	return e
}

// engineCall talks to an engine as its user's product would.
func engineCall(ctx context.Context, e *client.Engine, key, method, path string, body any, out any) (int, error) {
	c := &client.Client{BaseURL: e.URL, HTTP: &http.Client{Transport: engineTransport{key}}}
	err := c.Do(ctx, method, path, body, out)
	var bad *client.Error
	if errors.As(err, &bad) {
		return bad.Status, nil
	}
	if err != nil {
		return 0, err
	}
	return http.StatusOK, nil
}

type engineTransport struct{ key string }

func (e engineTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Engine-Key", e.key)
	r.Close = true
	return http.DefaultTransport.RoundTrip(r)
}

func remember(t *testing.T, e *client.Engine, key, what string) {
	t.Helper()
	status, err := engineCall(t.Context(), e, key, http.MethodPost, "/execute", map[string]string{"input": what}, nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("execute: status %d, %v", status, err)
	}
}

// memory is what an engine's brain exports.
type memory struct {
	Memories []struct{ Input string }
	Runs     []struct {
		PID       int        `json:"pid"`
		StartedAt time.Time  `json:"started_at"`
		EndedAt   *time.Time `json:"ended_at"`
	}
}

func export(t *testing.T, e *client.Engine, key string) memory {
	t.Helper()
	var m memory
	status, err := engineCall(t.Context(), e, key, http.MethodGet, "/memory/export", nil, &m)
	if err != nil || status != http.StatusOK {
		t.Fatalf("export: status %d, %v", status, err)
	}
	return m
}

func (m memory) knows(what string) error {
	for _, x := range m.Memories {
		if x.Input == what {
			return nil
		}
	}
	return fmt.Errorf("the brain does not know %q: %+v", what, m.Memories)
}

// freeAddr is a loopback address that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
