package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// consulWay is a way to the shared Consul on which some requests get no answer, as
// on a connection of which one end is gone.
func consulWay(t *testing.T, silent func(*http.Request) bool) string {
	t.Helper()
	return consulProxy(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if !silent(r) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // else the end of the request is not seen
		<-r.Context().Done()
		return true
	})
}

// consulWithout is a way to the shared Consul on which a list of keys is refused while
// refused says so.
func consulWithout(t *testing.T, below string) (way string, refused *atomic.Bool) {
	t.Helper()
	refused = new(atomic.Bool)
	return consulProxy(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !refused.Load() || r.URL.Path != "/v1/kv/"+below || !r.URL.Query().Has("recurse") {
			return false
		}
		http.Error(w, "refused by the test", http.StatusInternalServerError)
		return true
	}), refused
}

// consulProxy is a way to the shared Consul for all requests but those that answered
// takes care of.
func consulProxy(t *testing.T, answered func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	consul, err := url.Parse(shared.ConsulAddr)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(consul) }}
	way := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answered(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(way.Close)
	return way.URL
}

// TestLaggingReplica: a replica that reaches Consul but hears nothing of its watch
// of the rows says that it lags and is not ready, while it goes on to admit; and
// it comes back by itself.
func TestLaggingReplica(t *testing.T) {
	t.Parallel()
	var silent atomic.Bool
	way := consulWay(t, func(r *http.Request) bool {
		return silent.Load() && strings.HasSuffix(r.URL.Path, "/changes/") && r.URL.Query().Has("recurse")
	})
	r := startService(t, shared, map[string]string{"CONSUL_HTTP_ADDR": way, "ORCH_VOLUME_POOL": "1"})
	c, ctx := r.product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	eventually(t, "the replica is not ready", func() error { return wantLag(c.Ready(ctx)) })
	if a, err := c.Admit(ctx, "u", client.AdmitOptions{}); err != nil || !a.Admitted || a.Engine.APIKey != e.APIKey {
		t.Errorf("admit while it lags: %+v, %v", a, err)
	}
	if err := wantLag(second(c.Status(ctx))); err != nil {
		t.Errorf("status while it lags: %v", err)
	}
	silent.Store(false)
	eventually(t, "the replica is ready again", func() error { return c.Ready(ctx) })
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

// wantLag returns nil for the answer of a replica that lags.
func wantLag(err error) error {
	var bad *client.Error
	if !errors.As(err, &bad) || bad.Status != http.StatusServiceUnavailable || bad.Code != "BACKEND_UNAVAILABLE" || !strings.Contains(bad.Message, "lags") || bad.RetryAfter < time.Second {
		return fmt.Errorf("got %w, want a 503 that says that the replica lags", cmp.Or(err, errors.New("no error")))
	}
	return nil
}
