package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
	"github.com/septemberai/orch/registry"
)

const (
	adminKey = "admin-key-of-the-tests"
	prefix   = "client-tests/"
)

// startService runs the service on real agents and returns its address.
func startService(t *testing.T, stack *devstack.Stack) string {
	t.Helper()
	cfg, err := config.Load([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=" + adminKey, "ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"), "ORCH_CONSUL_PREFIX=" + prefix, "ORCH_VOLUME_POOL=0",
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_BIN_DIR=/no/engines", "ORCH_ALLOW_OPEN_NOMAD=true",
	})
	if err != nil {
		t.Fatal(err)
	}
	svc, err := service.New(t.Context(), cfg, service.Clients{
		NomadAddr: stack.NomadAddr, ConsulAddr: stack.ConsulAddr, VaultAddr: stack.VaultAddr, VaultToken: stack.VaultOrchToken,
	}, hclog.NewNullLogger())
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
	return "http://" + svc.Server.Addr().String()
}

func awaitReady(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.Ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

// rows writes rows as a separate replica, so that users exist without a boot.
func rows(t *testing.T, stack *devstack.Stack) *registry.Store {
	t.Helper()
	transport := &http.Transport{}
	c, err := consul.NewClient(&consul.Config{Address: stack.ConsulAddr, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	store := registry.New(c, prefix)
	replica := store.Join(hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); replica.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; transport.CloseIdleConnections() })
	select {
	case <-replica.Joined():
	case <-time.After(time.Minute):
		t.Fatal("no session after a minute")
	}
	return store
}

// anyUser generates user_ids that docs/api.md allows, many in the syntax of a URL.
var anyUser = rapid.OneOf(
	rapid.StringOfN(rapid.SampledFrom([]rune(`/%.?#&=+;:@ \"'<>{}$|*ü🦊a2F`)), 1, -1, 256),
	rapid.SampledFrom([]string{"provision", "start", "..", ".", "/", "//", "a/../b", "%2F", "a%2Fb", "a%252Fb", " ", "?", "#", strings.Repeat("/", 256)}),
	rapid.StringN(1, -1, 256),
).Filter(func(s string) bool { return engine.CheckUserID(s) == nil })

// TestUserIDsComeThrough: a user_id that the client sends in a path is read by the service
// unchanged, byte by byte, in every call.
func TestUserIDsComeThrough(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := &client.Client{BaseURL: startService(t, stack), AdminKey: adminKey, HTTP: &http.Client{Transport: transport}}
	awaitReady(t, c)
	product, err := c.RegisterProduct(t.Context(), "acme", "Acme", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.PlatformKey = product.PlatformAPIKey
	store := rows(t, stack)
	p, err := store.Product(t.Context(), product.ProductID)
	if err != nil {
		t.Fatal(err)
	}

	rapid.Check(t, func(rt *rapid.T) {
		ctx, user := t.Context(), anyUser.Draw(rt, "user_id")
		row := &engine.Row{
			EngineID: strings.ToLower(rand.Text()), ProductID: p.ProductID, ProductSlug: p.Slug, UserID: user,
			State: engine.Provisioning, Desired: engine.Running, Image: "engine", CreatedAt: time.Now().UTC(),
		}
		if err := store.Refollowing(ctx, func() error { return store.Claim(ctx, p, row, nil) }); err != nil {
			rt.Fatal(err)
		}
		e, err := c.Engine(ctx, user)
		if err != nil || e.UserID != user || e.EngineID != row.EngineID || e.Status != "provisioning" {
			rt.Fatalf("GET: %+v, %v", e, err)
		}
		_, err = c.Provision(ctx, user, "")
		wantCode(rt, err, "ENGINE_ALREADY_EXISTS")
		_, err = c.Start(ctx, user)
		wantCode(rt, err, "ENGINE_BUSY")
		_, err = c.Stop(ctx, user)
		wantCode(rt, err, "ENGINE_BUSY")
		_, err = c.RotateKey(ctx, user)
		wantCode(rt, err, "ENGINE_NOT_RUNNING")
		if e, err = c.Destroy(ctx, user); err != nil || e.EngineID != row.EngineID {
			rt.Fatalf("DELETE: %+v, %v", e, err)
		}
		_, err = c.Engine(ctx, user)
		wantCode(rt, err, "ENGINE_NOT_FOUND")
	})
}

func wantCode(t *rapid.T, err error, code client.Code) {
	if !errors.Is(err, code) {
		t.Fatalf("got %v, want %s", err, code)
	}
}
