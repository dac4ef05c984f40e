package admission

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestLaggingReplica: a replica that reaches Consul but gets no updates of the rows reports
// that it lags and is not ready, but still admits users. It recovers by itself.
func TestLaggingReplica(t *testing.T) {
	t.Parallel()
	var silent atomic.Bool
	way := harness.ConsulWay(t, func(r *http.Request) bool {
		return silent.Load() && strings.HasSuffix(r.URL.Path, "/changes/") && r.URL.Query().Has("recurse")
	})
	r := harness.StartService(t, harness.Shared, map[string]string{"CONSUL_HTTP_ADDR": way, "ORCH_VOLUME_POOL": "1"})
	c, ctx := r.Product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	harness.Eventually(t, "the replica is not ready", func() error { return wantLag(c.Ready(ctx)) })
	if a, err := c.Admit(ctx, "u", client.AdmitOptions{}); err != nil || !a.Admitted || a.Engine.APIKey != e.APIKey {
		t.Errorf("admit while it lags: %+v, %v", a, err)
	}
	if err := wantLag(harness.ErrOf(c.Status(ctx))); err != nil {
		t.Errorf("status while it lags: %v", err)
	}
	silent.Store(false)
	harness.Eventually(t, "the replica is ready again", func() error { return c.Ready(ctx) })
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

// wantLag returns nil for the response of a lagging replica.
func wantLag(err error) error {
	var bad *client.Error
	if !errors.As(err, &bad) || bad.Status != http.StatusServiceUnavailable || bad.Code != "BACKEND_UNAVAILABLE" || !strings.Contains(bad.Message, "lags") || bad.RetryAfter < time.Second {
		return fmt.Errorf("got %w, want a 503 because the replica lags", cmp.Or(err, errors.New("no error")))
	}
	return nil
}
