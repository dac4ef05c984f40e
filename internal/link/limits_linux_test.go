package link

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

// startConsul starts an agent with a limit of connections per address, and returns its URL.
func startConsul(t *testing.T, conns int) string {
	t.Helper()
	binaries, err := devstack.Tools(t.Context(), devstack.ToolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var ports []any
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "consul.hcl")
	config := fmt.Sprintf("ports { http = %d, server = %d, serf_lan = %d, serf_wan = -1, dns = -1, grpc = -1, grpc_tls = -1 }\n", ports...) +
		fmt.Sprintf("bind_addr = \"127.0.0.1\"\ndisable_update_check = true\nlimits { http_max_conns_per_client = %d }\n", conns)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binaries.Consul, "agent", "-dev", "-log-level=error", "-config-file="+file)
	cmd.Env = []string{"HOME=" + dir, "GOMAXPROCS=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return fmt.Sprintf("http://127.0.0.1:%d", ports[0])
}

// TestStoreAtItsLimit: two replicas at one address, and a Consul that allows far fewer
// connections than they use: every write is made exactly once, also those of a replica that
// comes when the other one has all connections and does not need them any more.
func TestStoreAtItsLimit(t *testing.T) {
	url := startConsul(t, 10)
	one, _ := linkTo(t, Consul, url)
	other, _ := linkTo(t, Consul, url)
	send := func(l *Link, method, path, body string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		resp, err := l.RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return strings.TrimSpace(string(b)), err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if _, err := send(one, "PUT", "/v1/kv/ready", ""); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for name, l := range map[string]func(int) *Link{
		"one":   func(int) *Link { return one },
		"other": func(int) *Link { return other },
		"both":  func(i int) *Link { return []*Link{one, other}[i%2] },
	} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			began := time.Now()
			for i := range 400 {
				wg.Go(func() {
					// Only the first of several equal writes is accepted.
					wrote, err := send(l(i), "PUT", fmt.Sprintf("/v1/kv/%s/%d?cas=0", name, i), "x")
					if err != nil || wrote != "true" {
						t.Errorf("%d: %q, %v", i, wrote, err)
					}
				})
			}
			wg.Wait()
			t.Logf("400 writes took %s", time.Since(began))
		})
	}
}
