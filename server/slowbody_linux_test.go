package server_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/secrets"
)

// refusedBytes is the size of the body that a caller without a key announces.
const refusedBytes = 60_000

// TestSlowBodyWithoutKey: a caller without a valid key gets its response before it has sent
// its body, and does not hold a request meanwhile, on every route that takes a body. The
// connection ends, unless the rest of the body follows soon.
func TestSlowBodyWithoutKey(t *testing.T) {
	svc := serve(t)
	for _, c := range []struct{ method, path, header, key string }{
		{"POST", "/engines/provision", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/provision", "X-Other", ""},
		{"POST", "/engines/u/admit", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/u/start", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/u/keep-awake", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/u/snapshots", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/u/restore", "X-Platform-Key", "nonsense"},
		{"POST", "/engines/u/fork", "X-Platform-Key", "nonsense"},
		{"DELETE", "/engines/u/snapshots/s", "X-Platform-Key", "nonsense"},
		{"DELETE", "/engines/u", "X-Platform-Key", "nonsense"},
		{"POST", "/products/register", "X-Admin-Key", "nonsense"},
		{"PUT", "/products/x/policy", "X-Admin-Key", secrets.NewPlatformKey()},
		{"POST", "/nodes/x/adopt", "X-Admin-Key", "nonsense"},
		{"POST", "/nodes/x/evacuate", "X-Admin-Key", "nonsense"},
		{"POST", "/stored-engines/x/import", "X-Admin-Key", "nonsense"},
		{"POST", "/reconcile", "X-Admin-Key", "nonsense"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			t.Parallel()
			resp, body, end := callWithoutKey(t, svc.Server.Addr().String(), c.method, c.path, c.header, c.key, "{")
			if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "_KEY") {
				t.Errorf("%s %s", resp.Status, body)
			}
			if !errors.Is(end, io.EOF) && !isReset(end) {
				t.Errorf("the connection does not end: %v", end)
			}
		})
	}
}

// callWithoutKey announces a body of refusedBytes and sends a part of it. It returns the
// response with its body, and how the connection ends after it.
func callWithoutKey(t *testing.T, addr, method, path, header, key, sent string) (resp *http.Response, body string, end error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// A response that waits for the body arrives after the server's limit for a whole
	// request, 30 s.
	_ = conn.SetDeadline(time.Now().Add(25 * time.Second))
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: orch\r\n%s: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, path, header, key, refusedBytes, sent); err != nil {
		t.Fatal(err)
	}
	from := bufio.NewReader(conn)
	resp, err = http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Errorf("the response ends early: %q, %v", text, err)
	}
	_, end = from.ReadByte()
	return resp, string(text), end
}

// isReset reports whether the server closed the connection while data was under way.
func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection reset")
}
