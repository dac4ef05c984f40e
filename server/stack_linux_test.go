package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
)

const adminKey = "admin-key-of-the-tests"

// api is a service with real agents.
type api struct {
	url    string
	http   *http.Client
	key    string // X-Platform-Key
	svc    *service.Service
	consul string // address of its registry
	stack  *devstack.Stack
}

// startAPI starts a service; vars are additional variables.
func startAPI(t testing.TB, vars ...string) *api {
	t.Helper()
	return startAPIAt(t, func(*service.Clients) {}, vars...)
}

// startAPIAt starts a service whose clients are modified by change.
func startAPIAt(t testing.TB, change func(*service.Clients), vars ...string) *api {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "engine"), "github.com/septemberai/orch/cmd/reference-engine")
	build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		t.Fatal(err)
	}
	stack, err := devstack.Start(t.Context(), devstack.Config{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	cfg, err := config.Load(append([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=" + adminKey, "ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"), "ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_BIN_DIR=" + bin,
		"ORCH_ALLOW_OPEN_NOMAD=true", "ORCH_WRONG_KEYS_PER_MINUTE=0", "ORCH_VOLUME_POOL=1", "ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32",
	}, vars...))
	if err != nil {
		t.Fatal(err)
	}
	clients := service.Clients{NomadAddr: stack.NomadAddr, ConsulAddr: stack.ConsulAddr, VaultAddr: stack.VaultAddr, VaultToken: stack.VaultOrchToken}
	change(&clients)
	svc, err := service.New(t.Context(), cfg, clients, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	transport, scheme := &http.Transport{ForceAttemptHTTP2: true}, "http"
	if dir := filepath.Dir(cfg.TLSCertFile); cfg.TLSCertFile != "" {
		scheme, transport.TLSClientConfig = "https", trusting(t, filepath.Join(dir, "ca.pem"))
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	a := &api{url: scheme + "://" + svc.Server.Addr().String(), http: &http.Client{Transport: transport}, consul: stack.ConsulAddr, stack: stack, svc: svc}
	a.await(t, "/ready")
	answer := a.call(t, "POST", "/products/register", `{"slug": "p", "display_name": "P"}`)
	answer.want(t, 200, "")
	a.key = answer.field("platform_api_key")
	return a
}

// serve runs a service whose agents do not exist: nothing listens on port 1.
func serve(t *testing.T, vars ...string) *service.Service {
	t.Helper()
	cfg, err := config.Load(append([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_IMAGE=engine:1",
		"ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}, vars...))
	if err != nil {
		t.Fatal(err)
	}
	const nobody = "http://127.0.0.1:1"
	svc, err := service.New(t.Context(), cfg, service.Clients{NomadAddr: nobody, ConsulAddr: nobody, VaultAddr: nobody, VaultToken: "t"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return svc
}

// await waits until the path returns 200.
func (a *api) await(t testing.TB, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for a.call(t, "GET", path, "").status != 200 {
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not return 200 within a minute", path)
		case <-tick.C:
		}
	}
}

type answer struct {
	status int
	header http.Header
	body   map[string]any
	text   string
}

// call sends both keys, because each endpoint uses only one.
func (a *api) call(t testing.TB, method, path, body string) answer {
	t.Helper()
	return a.callWith(t, method, path, body, map[string]string{"X-Admin-Key": adminKey, "X-Platform-Key": a.key})
}

// callWith sends the headers that are not empty.
func (a *api) callWith(t testing.TB, method, path, body string, headers map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := a.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := answer{status: resp.StatusCode, header: resp.Header, text: string(b)}
	if err := json.Unmarshal(b, &got.body); err != nil {
		t.Fatalf("%d with body %q: %v", got.status, b, err)
	}
	return got
}

func (a answer) field(name string) string { return fmt.Sprint(a.body[name]) }

func (a answer) want(t testing.TB, status int, code string) {
	t.Helper()
	got := ""
	if e, ok := a.body["error"].(map[string]any); ok {
		got = fmt.Sprint(e["code"])
	}
	if a.status != status || got != code {
		t.Fatalf("got %d %s, want %d %s", a.status, a.text, status, code)
	}
}

// noStore fails unless a response contains this key and must not be cached.
func (a answer) noStore(t testing.TB, name string) {
	t.Helper()
	a.want(t, 200, "")
	if got := a.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("a response with %s has Cache-Control %q", name, got)
	}
	if key := a.field(name); !strings.Contains(key, "k-sept-") {
		t.Fatalf("the response has no %s", name)
	}
}
