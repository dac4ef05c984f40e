package cli

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/internal/e2e/harness"
)

const (
	idleConnections = 10_000
	openCalls       = 25_000
	// mostMemory is the maximum size of the service with all of them, in MiB. Measured: 38
	// for itself, and 100 to 133 with all of them. Connections take 10 KB each, as much again
	// until the next garbage collection, and more if there are many processors.
	mostMemory = 200
)

// TestManyConnections: connections that nobody uses, and calls without a key that never end,
// take little memory of the service, as it is shipped, and keep nobody out.
func TestManyConnections(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	share := min(1, (float64(files.Max)-2000)/(idleConnections+openCalls))
	idlers, callers := int(share*idleConnections), int(share*openCalls)
	p := harness.StartProcess(t, harness.Shared, "connections/", "ORCH_LOG_LEVEL=info")
	addr := strings.TrimPrefix(p.BaseURL, "http://")
	memory := func() int {
		proc, err := procfs.NewProc(p.Cmd.Process.Pid)
		if err != nil {
			t.Error(err)
		}
		stat, err := proc.Stat()
		if err != nil {
			t.Error(err)
		}
		return stat.ResidentMemory() >> 20
	}
	var conns []net.Conn
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.Close()
		}
	})
	// Each address of loopback has ports for about 28,000 connections.
	open := func(n int, do func(net.Conn) error) {
		t.Helper()
		var mu sync.Mutex
		var work sync.WaitGroup
		const lanes = 50
		for lane := range lanes {
			work.Go(func() {
				from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+lane%8))}, Timeout: time.Minute}
				for range n / lanes {
					c, err := from.Dial("tcp", addr)
					if err == nil {
						mu.Lock()
						conns = append(conns, c)
						mu.Unlock()
						err = do(c)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
	}
	before := memory()
	most, end := make(chan int), make(chan struct{})
	go func() { // measures until the end
		at := before
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				most <- at
				return
			case <-tick.C:
				at = max(at, memory())
			}
		}
	}()
	open(idlers, func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /live HTTP/1.1\r\nHost: orch\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("got %s", resp.Status)
		}
		return err
	})
	idle := memory()
	// A call that cannot connect is turned away as well.
	open(callers, func(c net.Conn) error {
		_, _ = io.WriteString(c, "POST /products/register HTTP/1.1\r\nHost: orch\r\nX-Admin-Key: "+strings.Repeat("x", 32)+"\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{")
		return nil
	})
	if err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	close(end)
	peak := <-most
	t.Logf("%d MiB; with %d idle connections: %d MiB; with %d open calls in addition: at most %d MiB", before, idlers, idle, callers, peak)
	if peak > mostMemory {
		t.Errorf("%d MiB, want at most %d", peak, mostMemory)
	}
}
