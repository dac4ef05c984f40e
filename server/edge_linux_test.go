package server_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSlowClients: clients that send their request slowly, or not at all, are disconnected,
// and keep no other client out meanwhile.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	svc := serve(t)
	addr := svc.Server.Addr().String()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	began := time.Now()
	const margin = 10 * time.Second // on a busy machine
	var clients sync.WaitGroup
	// drip sends first at once and then more, byte by byte, until the server disconnects.
	drip := func(name, first, more string, within time.Duration) {
		conn := dial()
		clients.Go(func() {
			if _, err := io.WriteString(conn, first); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			stop := make(chan struct{})
			var sending sync.WaitGroup
			sending.Go(func() {
				tick := time.NewTicker(200 * time.Millisecond)
				defer tick.Stop()
				for i := 0; more != ""; i++ {
					select {
					case <-stop:
						return
					case <-tick.C:
						_, _ = conn.Write([]byte{more[i%len(more)]})
					}
				}
			})
			_ = conn.SetReadDeadline(time.Now().Add(within + margin))
			_, err := io.Copy(io.Discard, conn)
			close(stop)
			sending.Wait()
			if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
				t.Errorf("%s: it is connected for more than %s", name, within+margin)
			}
		})
	}
	for range 50 {
		drip("no request", "", "", 10*time.Second)
		drip("slow header", "GET /live HTTP/1.1\r\nHost: orch\r\nX-Slow: ", "a", 10*time.Second)
		drip("slow body", "POST /products/register HTTP/1.1\r\nHost: orch\r\nX-Admin-Key: "+adminKey+"\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n", " ", 30*time.Second)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: margin}).Get("http://" + addr + "/live")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("beside slow clients: %s %v", resp.Status, resp.Header)
	}
	clients.Wait()
	t.Logf("all were disconnected within %s", time.Since(began))
}

// TestRefusedBody: a caller with a wrong key gets the whole response, whether or not its
// body arrives, and its connection is closed.
func TestRefusedBody(t *testing.T) {
	svc := serve(t)
	for name, sent := range map[string]int{"no body": 0, "a part": 1, "more than a buffer": refusedBytes / 2, "all": refusedBytes} {
		t.Run(name, func(t *testing.T) {
			resp, body, end := callWithoutKey(t, svc.Server.Addr().String(), "POST", "/products/register", "X-Admin-Key", strings.Repeat("x", 32), strings.Repeat(" ", sent))
			if resp.StatusCode != http.StatusUnauthorized || !resp.Close || !strings.Contains(body, "INVALID_ADMIN_KEY") {
				t.Errorf("got %s %v %q", resp.Status, resp.Header, body)
			}
			if !errors.Is(end, io.EOF) {
				t.Errorf("after the response: %v", end)
			}
		})
	}
}

// TestLargeHeader: a header that is too large is refused before it is read to its end.
func TestLargeHeader(t *testing.T) {
	svc := serve(t)
	conn, err := net.Dial("tcp", svc.Server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	// The server may respond before it was sent.
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /live HTTP/1.1\r\nHost: orch\r\nX-Large: %s", strings.Repeat("a", 1<<20))
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %s", resp.Status)
	}
}

// TestNoDocs: with ORCH_DOCS=false the description of the API does not exist.
func TestNoDocs(t *testing.T) {
	for docs, want := range map[string]int{"true": http.StatusOK, "false": http.StatusNotFound} {
		svc := serve(t, "ORCH_DOCS="+docs)
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		for _, path := range []string{"/docs", "/openapi.yaml"} {
			resp, err := (&http.Client{Transport: transport}).Get("http://" + svc.Server.Addr().String() + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("ORCH_DOCS=%s: %s is %s", docs, path, resp.Status)
			}
		}
	}
}
