package server

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestConnectionsOf(t *testing.T) {
	for descriptors, want := range map[int]int{1: 1, 256: 128, 1024: 512, 4096: 3584, mostDescriptors: mostDescriptors - keptDescriptors} {
		if got := connectionsOf(descriptors); got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}

// limitedServer serves on at most this number of connections, and keeps at most idle of them
// open between requests; /slow waits for release.
func limitedServer(t *testing.T, most, idle int, secure *tls.Config) (lim *limited, slow chan struct{}, release func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lim = limit(l, most, hclog.NewNullLogger())
	lim.mostIdle = idle
	slow, gate := make(chan struct{}), make(chan struct{})
	srv := &http.Server{TLSConfig: secure, ConnState: lim.state, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slow <- struct{}{}
			<-gate
		}
		res := &response{ResponseWriter: w, draining: new(atomic.Bool), crowded: lim.crowded}
		res.WriteHeader(http.StatusOK)
	})}
	served := make(chan error, 1)
	go func() {
		if secure != nil {
			served <- srv.ServeTLS(lim, "", "")
			return
		}
		served <- srv.Serve(lim)
	}()
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return lim, slow, func() { close(gate) }
}

// ask sends a request on a new connection, which stays open.
func ask(t *testing.T, addr, path string, secure *tls.Config) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if secure != nil && err == nil {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if path == "" {
		return conn
	}
	send := func() {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: orch\r\n\r\n", path); err != nil {
			t.Error(err)
		}
	}
	if secure != nil {
		go send() // the handshake ends when the connection is accepted
	} else {
		send()
	}
	return conn
}

func answered(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

// TestConnectionLimit: idle clients keep no other client out, and a request in progress is
// never interrupted for another client.
func TestConnectionLimit(t *testing.T) {
	t.Run("HTTP", func(t *testing.T) { connectionLimit(t, nil) })
	t.Run("HTTPS", func(t *testing.T) {
		of := httptest.NewTLSServer(nil) // has a certificate
		of.Close()
		connectionLimit(t, &tls.Config{Certificates: of.TLS.Certificates, NextProtos: []string{"http/1.1"}})
	})
}

func connectionLimit(t *testing.T, secure *tls.Config) {
	const most = 8
	lim, slow, release := limitedServer(t, most, most, secure)
	addr := lim.Addr().String()
	ask := func(t *testing.T, addr, path string) net.Conn { t.Helper(); return ask(t, addr, path, secure) }
	busy := ask(t, addr, "/slow")
	<-slow
	for range 5 * most {
		answered(t, ask(t, addr, "/")) // and is idle afterwards
	}
	for range 5 * most {
		ask(t, addr, "") // sends nothing
	}
	answered(t, ask(t, addr, "/"))
	for range most - 1 {
		ask(t, addr, "/slow")
		<-slow
	}
	waits := ask(t, addr, "/") // waits for one of them to end
	release()
	answered(t, busy)
	answered(t, waits)
}

// TestIdleLimit: while many connections are idle, the next ones are closed after their
// request. No idle connection is closed: its next request may be on its way.
func TestIdleLimit(t *testing.T) {
	const idle = 2
	lim, slow, release := limitedServer(t, 100, idle, nil)
	addr := lim.Addr().String()
	busy := ask(t, addr, "/slow", nil) // does not count
	<-slow
	var conns []net.Conn
	for range 2 * idle {
		conn := ask(t, addr, "/", nil)
		answered(t, conn)
		conns = append(conns, conn)
		for deadline := time.Now().Add(time.Minute); len(conns) == idle && !lim.crowded(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not know that they are idle")
			}
		}
	}
	for _, conn := range conns[idle:] {
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a connection too many: %d bytes, %v", n, err)
		}
	}
	for range 3 {
		for _, conn := range conns[:idle] {
			if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: orch\r\n\r\n"); err != nil {
				t.Error(err)
			}
			answered(t, conn)
		}
	}
	release()
	answered(t, busy)
}
