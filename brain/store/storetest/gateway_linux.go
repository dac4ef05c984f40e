// Package storetest runs an S3 server for tests: a real one, on loopback, which keeps its
// objects in a directory.
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/internal/devstack"
)

// Bucket is the bucket that each server has.
const Bucket = "brains"

// Credentials are those of each server.
var Credentials = store.Credentials{AccessKey: "test-access", SecretKey: "test-secret-of-the-gateway"}

// Gateway is a running server.
type Gateway struct {
	Addr string
	Dir  string // of its buckets
}

// StoreURL is what store.Open takes. via is the address of a proxy, or empty.
func (g *Gateway) StoreURL(via string) string {
	if via == "" {
		via = g.Addr
	}
	return fmt.Sprintf("s3://%s/some/prefix?endpoint=http://%s&region=us-east-1", Bucket, via)
}

// Start starts a server, which ends with the test.
func Start(t *testing.T) *Gateway {
	t.Helper()
	program, err := devstack.Gateway(t.Context(), func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(g.Dir, Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 5 { // another process may take the port
		if g.start(t, program) {
			return g
		}
	}
	t.Fatal("the server does not start")
	return nil
}

func (g *Gateway) start(t *testing.T, program string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.Addr = l.Addr().String()
	_ = l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, program, "--port", g.Addr, "--quiet", "posix", g.Dir)
	c.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Credentials.AccessKey, "ROOT_SECRET_KEY="+Credentials.SecretKey)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	stop := func() { cancel(); <-ended }
	client := http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		select {
		case <-ended:
			stop()
			t.Logf("the server has ended: %s", out.String())
			return false
		case <-tick.C:
		}
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+g.Addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := client.Do(q); err == nil {
			_ = r.Body.Close()
			t.Cleanup(stop)
			return true
		}
	}
	stop()
	t.Logf("the server does not respond: %s", out.String())
	return false
}
