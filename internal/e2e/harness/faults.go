package harness

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/fault"
)

// StartFaulty starts a server on the shared agents and waits until it is ready, unless the
// enabled fault point ("kill POINT" or "pause POINT") prevents that.
func StartFaulty(t *testing.T, prefix, database, armed string, env ...string) *Process {
	t.Helper()
	return StartFaultyOn(t, Shared, prefix, database, armed, env...)
}

// StartFaultyOn is StartFaulty on the agents of a stack.
func StartFaultyOn(t *testing.T, stack *devstack.Stack, prefix, database, armed string, env ...string) *Process {
	t.Helper()
	orch, err := faultyBinary()
	if err != nil {
		t.Fatal(err)
	}
	env = append([]string{fault.Variable + "=" + armed, "ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_VOLUME_POOL=2", "ORCH_LOG_LEVEL=debug"}, env...)
	return Serve(t, orch, stack, prefix, database, env...)
}

// FailingImage is the image of an engine that exits at its start.
const FailingImage = "reference-engine.exit-at-start"

// ConsulWay is a proxy to the shared Consul. Some requests get no response through it, as
// on a broken connection.
func ConsulWay(t *testing.T, silent func(*http.Request) bool) string {
	t.Helper()
	return ConsulProxy(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if !silent(r) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // otherwise the end of the request is not noticed
		<-r.Context().Done()
		return true
	})
}

// ToConsul hands requests on to the shared Consul.
func ToConsul(t *testing.T) http.Handler {
	t.Helper()
	consul, err := url.Parse(Shared.ConsulAddr)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: Shared.TLS()}
	t.Cleanup(transport.CloseIdleConnections)
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(consul) }, Transport: transport}
}

// ConsulProxy returns the URL of a proxy of the shared Consul. Requests for which answered
// returns true are not passed on, because answered has responded to them.
func ConsulProxy(t *testing.T, answered func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	proxy := ToConsul(t)
	way := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answered(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(way.Close)
	return way.URL
}
