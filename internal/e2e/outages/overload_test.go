package outages

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// occupy begins a request that is in progress until its connection is closed: its body
// never comes.
func occupy(t *testing.T, r *harness.Replica, path, header, key string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: orch\r\n%s: %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", path, header, key); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	// The response comes when the handler reads the body.
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("%q, %v", line, err)
	}
	return conn
}

// TestOverload: at the limit of concurrent requests all calls are refused at once, except
// admits of running engines, which are refused last, and checks of the replica.
func TestOverload(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_MAX_REQUESTS": "1"})
	c, ctx := r.Product(t, nil), t.Context()
	if _, err := c.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{harness.PlatformHeader: c.PlatformKey, harness.AdminHeader: harness.AdminKey}
	running := occupy(t, r, "/products/register", harness.AdminHeader, harness.AdminKey)
	began := time.Now()
	for _, o := range harness.Operations {
		o := o.Of("nobody", harness.NoProduct)
		if o.ID == "admit" { // one that would have to boot an engine
			o.Body = `{"auto_provision": true}`
		}
		if got := r.Send(t, o, keys[o.Key]); o.Key != "" {
			got.Want(t, o, http.StatusServiceUnavailable, "OVERLOADED")
		} else if got.Status != http.StatusOK {
			t.Errorf("%s: %d %s", o.Path, got.Status, got.Text)
		}
	}
	for user, want := range map[string]string{"u": "", "nobody": "engine_not_found"} {
		if a, err := harness.Admit(ctx, c, user, false, false); err != nil || a.Reason != want {
			t.Errorf("admit of %s: %+v, %v", user, a, err)
		}
	}
	if a, err := harness.Admit(ctx, c, "u", true, true); err != nil || !a.Admitted {
		t.Errorf("admit of a running engine that may be woken: %+v, %v", a, err)
	}
	admitting := occupy(t, r, "/engines/u/admit", harness.PlatformHeader, c.PlatformKey)
	harness.WantCode(t, harness.ErrOf(harness.Admit(ctx, c, "u", false, false)), http.StatusServiceUnavailable, "OVERLOADED")
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("the calls took %s: the requests in progress may have ended before", took)
	}
	for _, conn := range []net.Conn{admitting, running} {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	harness.Eventually(t, "calls are served again", func() error { return harness.ErrOf(c.Engine(ctx, "u")) })
	if n := strings.Count(r.Logs.String(), "requests fail; further failures are counted"); n != 1 {
		t.Errorf("%d lines about failing requests, want 1", n)
	}
}
