package service

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newService returns a service whose agents do not exist.
func newService(t *testing.T, log hclog.Logger, vars ...string) (*Service, error) {
	t.Helper()
	cfg, err := config.Load(append([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=admin-key-of-the-tests", "ORCH_ENGINE_IMAGE=engine:1",
		"ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}, vars...))
	if err != nil {
		t.Fatal(err)
	}
	const nobody = "http://127.0.0.1:1" // nothing listens on port 1
	return New(t.Context(), cfg, Clients{NomadAddr: nobody, ConsulAddr: nobody, VaultAddr: nobody, VaultToken: "t"}, log)
}

// A service whose agents do not exist serves, ends when its context ends, and leaves
// nothing running.
func TestRunEnds(t *testing.T) {
	svc, err := newService(t, hclog.NewNullLogger(), "ORCH_OPS_ADDR=127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	// Operators have a separate listener.
	for _, c := range []struct {
		addr, path string
		want       int
	}{
		{svc.OpsAddr(), "/debug/pprof/heap", http.StatusOK},
		{svc.OpsAddr(), "/debug/pprof/", http.StatusOK},
		{svc.OpsAddr(), "/debug/pprof/cmdline", http.StatusNotFound},
		{svc.OpsAddr(), "/metrics", http.StatusOK},
		{svc.OpsAddr(), "/live", http.StatusOK},
		{svc.OpsAddr(), "/products", http.StatusUnauthorized},
		{svc.OpsAddr(), "/engines", http.StatusNotFound},
		{svc.Server.Addr().String(), "/debug/pprof/heap", http.StatusNotFound},
		{svc.Server.Addr().String(), "/metrics", http.StatusUnauthorized},
		{svc.Server.Addr().String(), "/products", http.StatusUnauthorized},
	} {
		resp, err := http.Get("http://" + c.addr + c.path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s of %s: %s, want %d", c.path, c.addr, resp.Status, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it runs on")
	}
}

// TestOpsAddressInUse: a default address that is in use is a warning, because several
// replicas can run on one machine; one that was set is an error.
func TestOpsAddressInUse(t *testing.T) {
	const byDefault = "127.0.0.1:8001"
	if l, err := net.Listen("tcp", byDefault); err == nil { // else another process has it, which is as good
		defer func() { _ = l.Close() }()
	}
	var out bytes.Buffer
	svc, err := newService(t, hclog.New(&hclog.LoggerOptions{Output: &out}))
	if err != nil {
		t.Fatal(err)
	}
	if addr := svc.OpsAddr(); addr != "" || !strings.Contains(out.String(), "[WARN]") || !strings.Contains(out.String(), "ORCH_OPS_ADDR") {
		t.Errorf("it listens on %q, and the log says: %s", addr, out.String())
	}
	discard(t, svc)
	for _, vars := range [][]string{{"ORCH_OPS_ADDR=" + byDefault}, {"ORCH_ADMIN_ON_OPS_ONLY=true"}} {
		if svc, err := newService(t, hclog.NewNullLogger(), vars...); err == nil || !strings.Contains(err.Error(), "ORCH_OPS_ADDR") {
			t.Errorf("%v: got %v", vars, err)
			discard(t, svc)
		}
	}
	svc, err = newService(t, hclog.NewNullLogger(), "ORCH_OPS_ADDR=off")
	if err != nil || svc.OpsAddr() != "" {
		t.Errorf("off: %v", err)
	}
	discard(t, svc)
}

// discard ends a service that was never run.
func discard(t *testing.T, svc *Service) {
	t.Helper()
	if svc == nil {
		return
	}
	if err := errors.Join(svc.Server.Close(), svc.ops.Close(), svc.audit.Close()); err != nil {
		t.Error(err)
	}
	svc.closeLinks()
}
