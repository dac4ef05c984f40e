package lifecycle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// tlsRig is a locked stack whose Vault issues certificates for engines.
type tlsRig struct {
	t      *testing.T
	stack  *devstack.Stack
	stores *harness.Stores
	roots  *x509.CertPool
	ca     string // the file with the authority, for one service
	prefix string
}

func startTLSRig(t *testing.T, cfg devstack.Config) *tlsRig {
	t.Helper()
	cfg.Locked = true
	rig := &tlsRig{t: t, stack: harness.OwnStack(t, cfg), roots: x509.NewCertPool(), prefix: "engine-tls/"}
	authority, err := rig.stack.EnginePKI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(authority)
	if err != nil {
		t.Fatal(err)
	}
	if !rig.roots.AppendCertsFromPEM(text) {
		t.Fatal("Vault's authority has no certificate")
	}
	rig.stores = harness.OpenStores(t, rig.stack)
	rig.ca = filepath.Join(t.TempDir(), "ca.pem")
	rig.trust(text)
	return rig
}

// trust replaces the authority that the service trusts.
func (r *tlsRig) trust(text []byte) {
	r.t.Helper()
	if err := os.WriteFile(r.ca+".next", text, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.ca+".next", r.ca); err != nil {
		r.t.Fatal(err)
	}
}

// in returns the rig for a subtest.
func (r *tlsRig) in(t *testing.T) *tlsRig {
	own := *r
	own.t = t
	return &own
}

func (r *tlsRig) service(more ...string) *harness.Replica {
	r.t.Helper()
	vars := harness.With(harness.Soon, append([]string{"ORCH_CONSUL_PREFIX=" + r.prefix, "ORCH_VOLUME_POOL=2", "ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_RESTART_BACKOFF_MAX_S=300"}, more...)...)
	return harness.StartService(r.t, r.stack, vars)
}

func (r *tlsRig) pki(more ...string) *harness.Replica {
	r.t.Helper()
	return r.service(append([]string{"ORCH_ENGINE_TLS=pki", "ORCH_ENGINE_CA_FILE=" + r.ca}, more...)...)
}

// call requests a path of an engine as a product would, over a new connection. name is the
// name that the certificate must have; empty: the host of the URL. roots nil: those of the
// machine.
func call(ctx context.Context, e *client.Engine, key, path, name string, roots *x509.CertPool, out any) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: name}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL+path, nil)
	if err != nil {
		return nil, err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if out != nil && resp.StatusCode == http.StatusOK {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	return resp, err
}

// process returns the process id of an engine that serves TLS and accepts a key.
func (r *tlsRig) process(e *client.Engine, key string) (pid int) {
	r.t.Helper()
	var info struct {
		PID int `json:"pid"`
	}
	resp, err := call(r.t.Context(), e, key, "/info", engine.ServerName("engine-"+e.EngineID), r.roots, &info)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("its process: %v, %v", resp, err)
	}
	return info.PID
}

// wantTLS checks that a product's client verifies the engine by its URL and by its name, and
// that others do not take it for the engine.
func (r *tlsRig) wantTLS(e *client.Engine, key string) {
	r.t.Helper()
	if !strings.HasPrefix(e.URL, "https://") {
		r.t.Fatalf("its url is %q", e.URL)
	}
	ctx, own := r.t.Context(), engine.ServerName("engine-"+e.EngineID)
	for _, name := range []string{"", own} {
		resp, err := call(ctx, e, "", "/health", name, r.roots, nil)
		if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
			r.t.Errorf("/health, with the name %q: %v, %v", name, resp, err)
			continue
		}
		if cert := resp.TLS.PeerCertificates[0]; len(cert.DNSNames) != 1 || cert.DNSNames[0] != own || len(cert.IPAddresses) != 1 {
			r.t.Errorf("its certificate is for %v and %v", cert.DNSNames, cert.IPAddresses)
		}
	}
	var bad *tls.CertificateVerificationError
	if _, err := call(ctx, e, "", "/health", "", nil, nil); !errors.As(err, &bad) {
		r.t.Errorf("without the authority: %v", err)
	}
	if _, err := call(ctx, e, "", "/health", engine.ServerName("engine-other"), r.roots, nil); !errors.As(err, &bad) {
		r.t.Errorf("as another engine: %v", err)
	}
	for _, k := range []struct {
		key  string
		want int
	}{{"", 401}, {key, 200}} {
		resp, err := call(ctx, e, k.key, "/memory/export", own, r.roots, nil)
		if err != nil || resp.StatusCode != k.want {
			r.t.Errorf("the brain: %v, %v, want %d", resp, err, k.want)
		}
	}
}

// must returns the result of a call that must succeed: must(call())(t).
func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestEngineTLS: with ORCH_ENGINE_TLS=pki engines have certificates of their own from Vault,
// and everything that happens to an engine happens over TLS. Engines that were made before
// stay as they are until their next start.
func TestEngineTLS(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rig := startTLSRig(t, devstack.Config{})
	plain := rig.service()
	before := plain.Product(t, nil)
	old := must(before.Provision(ctx, "old", ""))(t)
	plain.Stop()

	r := rig.pki()
	c, old2 := r.Product(t, nil), harness.At(before, r)
	t.Run("MadeBefore", func(t *testing.T) {
		if !strings.HasPrefix(old.URL, "http://") {
			t.Fatalf("its url is %q", old.URL)
		}
		run := harness.Export(t, old, old.APIKey).Runs
		a, err := harness.Admit(ctx, old2, "old", false, false)
		if err != nil || !a.Admitted || a.Engine.URL != old.URL {
			t.Fatalf("%+v, %v", a, err)
		}
		if now := harness.Export(t, old, old.APIKey).Runs; len(now) != len(run) {
			t.Errorf("it was restarted: %+v", now)
		}
		key := must(old2.RotateKey(ctx, "old"))(t)
		e := must(old2.Engine(ctx, "old"))(t)
		if e.URL != old.URL || e.APIKey != key {
			t.Errorf("after a rotation: %+v", e)
		}
		harness.Remember(t, e, key, "plain")
		must(old2.Stop(ctx, "old"))(t)
		must(old2.Start(ctx, "old"))(t)
		rig.in(t).wantTLS(harness.IsNow(t, old2, "old", "running", ""), key)
	})
	t.Run("Life", func(t *testing.T) { rig.in(t).life(r, c) })
	t.Run("NoRight", func(t *testing.T) { rig.in(t).noRight(c) })
	t.Run("Unverified", func(t *testing.T) { rig.in(t).unverified(r, c) })
	t.Run("OtherAuthority", func(t *testing.T) { rig.in(t).otherAuthority(c) })
	r.Stop()
	// Turned off again: the same.
	off := rig.service("ORCH_ENGINE_CA_FILE=" + rig.ca)
	t.Run("TurnedOff", func(t *testing.T) {
		c := harness.At(c, off)
		e := must(c.Engine(ctx, "u"))(t)
		rig.in(t).wantTLS(e, e.APIKey)
		key := must(c.RotateKey(ctx, "u"))(t)
		rig.in(t).wantTLS(e, key)
		must(c.Stop(ctx, "u"))(t)
		must(c.Start(ctx, "u"))(t)
		if e = harness.IsNow(t, c, "u", "running", ""); !strings.HasPrefix(e.URL, "http://") {
			t.Errorf("its url is %q", e.URL)
		}
		if err := harness.Export(t, e, key).Knows("over TLS"); err == nil {
			t.Error("it knows what nobody told it")
		}
	})
}

// life is what happens to an engine, over TLS.
func (r *tlsRig) life(replica *harness.Replica, c *client.Client) {
	t, ctx := r.t, r.t.Context()
	e := must(c.Provision(ctx, "u", ""))(t)
	r.wantTLS(e, e.APIKey)
	a, err := harness.Admit(ctx, c, "u", false, false)
	if err != nil || !a.Admitted || a.Engine.URL != e.URL {
		t.Fatalf("%+v, %v", a, err)
	}
	harness.Eventually(t, "Consul's check passes", func() error {
		list, _, err := r.stores.Consul.Health().Service("engine-"+e.EngineID, "", true, nil)
		if err != nil || len(list) != 1 || list[0].Service.Meta["scheme"] != "https" {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	pid := r.process(e, e.APIKey)
	key := must(c.RotateKey(ctx, "u"))(t)
	if now := r.process(e, key); now == pid {
		t.Error("the rotation did not restart the process")
	}
	r.wantTLS(must(c.Engine(ctx, "u"))(t), key)
	must(c.Stop(ctx, "u"))(t)
	must(c.Start(ctx, "u"))(t)
	r.wantTLS(harness.IsNow(t, c, "u", "running", ""), key)

	sleepy := replica.Product(t, map[string]any{"idle_timeout_s": 1})
	asleep := must(sleepy.Provision(ctx, "s", ""))(t)
	harness.AwaitEngine(t, sleepy, "s", "sleeping", "")
	a, err = harness.Admit(ctx, sleepy, "s", false, true)
	if err != nil || !a.Admitted {
		t.Fatalf("%+v, %v", a, err)
	}
	must(sleepy.KeepAwake(ctx, "s", time.Hour))(t) // it would sleep again before it is looked at
	r.wantTLS(a.Engine, asleep.APIKey)
	must(sleepy.Destroy(ctx, "s"))(t)
}

// noRight: an engine that gets no certificate does not serve without one, and the error
// says what is missing.
func (r *tlsRig) noRight(c *client.Client) {
	t, ctx := r.t, r.t.Context()
	policy := must(r.stores.Vault.Sys().GetPolicyWithContext(ctx, "engine-tls"))(t)
	if err := r.stores.Vault.Sys().PutPolicyWithContext(ctx, "engine-tls", "# nothing"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.stores.Vault.Sys().PutPolicyWithContext(ctx, "engine-tls", policy); err != nil {
			t.Error(err)
		}
	}()
	_, err := c.Provision(ctx, "without", "")
	harness.WantCode(t, err, 504, "BOOT_TIMEOUT")
	for _, word := range []string{"pki-engines/issue/engine", "login"} {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not name %q: %v", word, err)
		}
	}
	must(c.Destroy(ctx, "without"))(t)
}

// unverified: an engine that the service cannot verify, and whose check nobody runs, is not
// restarted: the fault may be the service's own.
func (r *tlsRig) unverified(replica *harness.Replica, c *client.Client) {
	t, ctx := r.t, r.t.Context()
	e := must(c.Engine(ctx, "u"))(t)
	pid := r.process(e, e.APIKey)
	list, _, err := r.stores.Consul.Health().Service("engine-"+e.EngineID, "", false, nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	warned := replica.Logs.Count("[WARN]", "engine_id="+e.EngineID)
	right := must(os.ReadFile(r.ca))(t)
	another := must(devstack.NewAuthority(t.TempDir()))(t)
	r.trust(must(os.ReadFile(another.CAFile()))(t))
	harness.Eventually(t, "the service notices", func() error {
		// Nomad's client registers it again.
		if err := r.stores.Consul.Agent().ServiceDeregister(list[0].Service.ID); err != nil && !strings.Contains(err.Error(), "Unknown service") {
			t.Fatal(err)
		}
		if replica.Logs.Count("[WARN]", "engine_id="+e.EngineID) == warned {
			return errors.New("its log does not say so")
		}
		return nil
	})
	harness.Eventually(t, "its check is back", func() error {
		list, _, err := r.stores.Consul.Health().Service("engine-"+e.EngineID, "", true, nil)
		if err != nil || len(list) != 1 {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	if n := replica.Logs.Count("[WARN]", "engine_id="+e.EngineID, "reason="+engine.ReasonUnhealthy); n > 0 {
		t.Error("it was failed")
	}
	r.trust(right)
	if now := r.process(harness.IsNow(t, c, "u", "running", ""), e.APIKey); now != pid {
		t.Error("it was restarted")
	}
}

// otherAuthority: the service trusts only the authorities in its file, which it reads again,
// and says so.
func (r *tlsRig) otherAuthority(c *client.Client) {
	t, ctx := r.t, r.t.Context()
	right := must(os.ReadFile(r.ca))(t)
	another := must(devstack.NewAuthority(t.TempDir()))(t)
	r.trust(must(os.ReadFile(another.CAFile()))(t))
	harness.Eventually(t, "a start meets an unknown authority", func() error {
		if _, err := c.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		_, err := c.Start(ctx, "u")
		if err == nil {
			return errors.New("it started")
		}
		harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
		for _, word := range []string{"certificate", "unknown authority", "ORCH_ENGINE_CA_FILE"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("the error does not name %q: %v", word, err)
			}
		}
		return nil
	})
	harness.AwaitEngine(t, c, "u", "failed", "certificate")
	r.trust(right)
	harness.Eventually(t, "a start with the right authority", func() error { return harness.ErrOf(c.Start(ctx, "u")) })
	e := harness.IsNow(t, c, "u", "running", "")
	r.wantTLS(e, e.APIKey)
}

// TestContainerTLS: the process in a container may read its certificate, a warm engine has
// its own before it has a user, and a paused engine keeps it.
func TestContainerTLS(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	ctx := t.Context()
	rig := startTLSRig(t, devstack.Config{DockerSocket: os.Getenv("DOCKER_HOST")})
	r := rig.pki(append(harness.Docker.Environ(), "ORCH_WARM_POOL=1")...)
	rig.stores.AwaitWarm(r, 1)
	warm := rig.stores.WarmRows(rig.prefix)
	c := r.Product(t, map[string]any{"idle_timeout_s": 1, "sleep_mode": "pause"})
	if len(warm) != 1 {
		t.Fatalf("%+v are warm", warm)
	}
	var e *client.Engine
	harness.Eventually(t, "the warm engine is claimed", func() error { // a busy machine may skip it
		if e = must(c.Provision(ctx, "u", ""))(t); e.EngineID == warm[0].EngineID {
			return nil
		}
		must(c.Destroy(ctx, "u"))(t)
		return fmt.Errorf("%s is not the warm engine", e.EngineID)
	})
	must(c.KeepAwake(ctx, "u", time.Hour))(t) // it would be frozen before it is looked at
	rig.wantTLS(e, e.APIKey)
	pid := harness.Inspect(t, e).State.Pid
	must(c.KeepAwake(ctx, "u", time.Second))(t)
	harness.AwaitEngine(t, c, "u", "sleeping", "")
	a, err := harness.Admit(ctx, c, "u", false, true)
	if err != nil || !a.Admitted || a.Engine.URL != e.URL {
		t.Fatalf("%+v, %v", a, err)
	}
	must(c.KeepAwake(ctx, "u", time.Hour))(t)
	if now := harness.Inspect(t, a.Engine).State.Pid; now != pid {
		t.Error("it woke as another process")
	}
	rig.wantTLS(a.Engine, e.APIKey)
	key := must(c.RotateKey(ctx, "u"))(t)
	rig.wantTLS(must(c.Engine(ctx, "u"))(t), key)
	must(c.Stop(ctx, "u"))(t)
	must(c.Start(ctx, "u"))(t)
	rig.wantTLS(harness.IsNow(t, c, "u", "running", ""), key)
	must(c.Destroy(ctx, "u"))(t)
}

// TestEngineCertificateRenewed: Nomad replaces an engine's certificate before it expires.
// The engine uses the new one, and is not restarted, neither by this nor by a new key that
// it reads after a signal.
func TestEngineCertificateRenewed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rig := startTLSRig(t, devstack.Config{})
	c := rig.pki("ORCH_ENGINE_KEY_RELOAD=signal", "ORCH_ENGINE_IMAGE=reference-engine.reload").Product(t, nil)
	life := func(ttl string) {
		t.Helper()
		if _, err := rig.stores.Vault.Logical().JSONMergePatch(ctx, "pki-engines/roles/engine", map[string]any{"ttl": ttl}); err != nil {
			t.Fatal(err)
		}
	}
	life("2m") // of the first certificate only, so that no later step must hurry
	e := must(c.Provision(ctx, "u", ""))(t)
	life("168h")
	own := engine.ServerName("engine-" + e.EngineID)
	pid := rig.process(e, e.APIKey)
	first := must(call(ctx, e, "", "/health", own, rig.roots, nil))(t).TLS.PeerCertificates[0]
	if life := first.NotAfter.Sub(first.NotBefore); life > 10*time.Minute {
		t.Fatalf("the first certificate is valid for %s", life)
	}
	harness.Eventually(t, "the certificate is renewed", func() error {
		resp, err := call(ctx, e, "", "/health", own, rig.roots, nil)
		if err != nil {
			return err
		}
		if now := resp.TLS.PeerCertificates[0]; now.SerialNumber.Cmp(first.SerialNumber) == 0 {
			return fmt.Errorf("it serves the first certificate until %s", now.NotAfter)
		}
		return nil
	})
	key := must(c.RotateKey(ctx, "u"))(t)
	rig.wantTLS(e, key)
	if now := rig.process(e, key); now != pid {
		t.Errorf("it runs as process %d, and was %d: it was restarted", now, pid)
	}
	must(c.Destroy(ctx, "u"))(t)
}

// tlsStranger listens on every free port of the engines with the certificate of another
// engine, which is valid for the same address, and responds as an engine that would accept
// any key that it is told.
type tlsStranger struct {
	strangerKeys bytes.Buffer
	mu           sync.Mutex
}

func (s *tlsStranger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if key := r.Header.Get("X-Engine-Key"); key != "" {
		s.mu.Lock()
		s.strangerKeys.WriteString(key + "\n")
		s.mu.Unlock()
	}
	if r.URL.Path == "/health" {
		_, _ = io.WriteString(w, `{"status": "ok"}`)
		return
	}
	w.WriteHeader(http.StatusUnauthorized)
}

// TestStrangerWithCertificate: a process that took an engine's port, with the certificate of
// another engine of the same node, gets no key, not even a wrong one; the error says that it
// is not the engine.
func TestStrangerWithCertificate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rig := startTLSRig(t, devstack.Config{DynamicPorts: [2]int{0, 8}})
	c := rig.pki().Product(t, harness.AnyImage)
	thief := must(c.Provision(ctx, "thief", ""))(t)
	environ := must(os.ReadFile(fmt.Sprintf("/proc/%d/environ", rig.process(thief, thief.APIKey))))(t)
	file := ""
	for v := range strings.SplitSeq(string(environ), "\x00") {
		if name, found := strings.CutPrefix(v, "ENGINE_TLS_FILE="); found {
			file = name
		}
	}
	stolen, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	node, _, err := rig.stores.Nomad.Nodes().Info(rig.stores.ReadyNode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := &tlsStranger{}
	srv := &http.Server{Handler: stranger, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{stolen}}}
	var serving sync.WaitGroup
	for port := node.NodeResources.MinDynamicPort; port <= node.NodeResources.MaxDynamicPort; port++ {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil { // otherwise it is the thief's own
			serving.Go(func() { _ = srv.ServeTLS(l, "", "") })
		}
	}
	t.Cleanup(func() { _ = srv.Close(); serving.Wait() })

	_, err = c.Provision(ctx, "victim", "reference-engine.never-listen")
	harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	for _, word := range []string{"certificate", "it has another name", "got no key"} {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not name %q: %v", word, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), thief.EngineID) { // it may be another product's
		t.Errorf("the error names the other engine: %v", err)
	}
	harness.AwaitEngine(t, c, "victim", "failed", "certificate")
	stranger.mu.Lock()
	defer stranger.mu.Unlock()
	if stranger.strangerKeys.Len() > 0 {
		t.Errorf("the stranger got these keys:\n%s", stranger.strangerKeys.String())
	}
}
