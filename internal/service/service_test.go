package service

import (
	"context"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A service whose agents do not exist serves, ends when its context ends, and leaves
// nothing running.
func TestRunEnds(t *testing.T) {
	cfg, err := config.Load([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=admin-key-of-the-tests", "ORCH_ENGINE_IMAGE=engine:1",
		"ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"), "ORCH_PPROF_ADDR=127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	const nobody = "http://127.0.0.1:1" // nothing listens on port 1
	svc, err := New(t.Context(), cfg, Clients{NomadAddr: nobody, ConsulAddr: nobody, VaultAddr: nobody, VaultToken: "t"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	// The profiles have a separate listener.
	for addr, want := range map[string]int{svc.profiles.listener.Addr().String(): http.StatusOK, svc.Server.Addr().String(): http.StatusNotFound} {
		resp, err := http.Get("http://" + addr + "/debug/pprof/heap")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("profiles of %s: %s, want %d", addr, resp.Status, want)
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
