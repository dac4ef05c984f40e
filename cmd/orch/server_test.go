package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

const (
	adminKey    = "admin-key-of-the-tests"
	providerKey = "sk-provider-secret-of-the-tests"
)

// good is a configuration whose agents do not exist: nothing listens on port 1.
func good(more ...string) []string {
	return append([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_IMAGE=engine:1",
		"ORCH_ENGINE_ENV_PASSTHROUGH=LLM_API_KEY", "LLM_API_KEY=" + providerKey, "VAULT_TOKEN=" + providerKey,
		"NOMAD_ADDR=http://127.0.0.1:1", "CONSUL_HTTP_ADDR=127.0.0.1:1", "VAULT_ADDR=http://127.0.0.1:1",
	}, more...)
}

func TestServerConfiguredWrongly(t *testing.T) {
	const secret = "15-letter-secre"
	code, stdout, stderr := orch(t, good(
		"ORCH_ADMIN_KEY="+secret, "ORCH_ADDR=8000", "ORCH_ENGINE_IMAGE=", "ORCH_BOOT_TIMEOUT_S="+secret, "ORCH_LOG_JSON="+secret,
		"ORCH_VOLUME_POOL=-1", "ORCH_ENGINE_ENV_PASSTHROUGH=LLM_API_KEY="+providerKey,
	), "server")
	if code != 2 || stdout != "" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	for _, name := range []string{"ORCH_ADMIN_KEY", "ORCH_ADDR", "ORCH_ENGINE_IMAGE", "ORCH_BOOT_TIMEOUT_S", "ORCH_LOG_JSON", "ORCH_VOLUME_POOL", "ORCH_ENGINE_ENV_PASSTHROUGH"} {
		if !strings.Contains(stderr, "\n  - "+name+": ") {
			t.Errorf("%s has no line of its own:\n%s", name, stderr)
		}
	}
	for _, key := range []string{secret, providerKey, adminKey} {
		if strings.Contains(stderr, key) {
			t.Errorf("%q is shown:\n%s", key, stderr)
		}
	}
	if len(lines) < 8 || strings.Contains(stderr, "goroutine") {
		t.Errorf("stderr is\n%s", stderr)
	}
}

func TestServerPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	code, _, stderr := orch(t, good("ORCH_ADDR="+l.Addr().String()), "server")
	if code != 1 || !strings.Contains(stderr, "ORCH_ADDR") || !strings.Contains(stderr, l.Addr().String()) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

// TestServerDatabaseUnusable: what only an operator can repair is reported as a mistake of
// the configuration.
func TestServerDatabaseUnusable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.db")
	if err := os.WriteFile(file, []byte("this is not a database, and longer than its header is: a hundred bytes, of which these are the first ones"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, says := range map[string]string{"sqlite://" + file: "backup", "sqlite:///dev/null/audit.db": "set a file", "postgres://h/d?sslmode=nonsense": "sslmode"} {
		code, _, stderr := orch(t, good("ORCH_DATABASE_URL="+url), "server")
		if code != 2 || !strings.Contains(stderr, "\n  - ORCH_DATABASE_URL: ") || !strings.Contains(stderr, says) {
			t.Errorf("%s: exit code %d, stderr %q", url, code, stderr)
		}
	}
}

// TestServerStopsOnSignal: even if none of its agents responds.
func TestServerStopsOnSignal(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd := command(t, good("ORCH_LOG_JSON=true", "ORCH_LOG_LEVEL=trace"), "server")
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var signalled time.Time
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				var line struct {
					Message string `json:"@message"`
					Addr    string `json:"addr"`
				}
				if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
					t.Errorf("a line of the log is not JSON: %q", lines.Text())
				}
				for _, key := range []string{adminKey, providerKey} {
					if strings.Contains(lines.Text(), key) {
						t.Errorf("the log has a key: %s", lines.Text())
					}
				}
				if line.Message == "listening" {
					live(t, line.Addr)
					if err := cmd.Process.Signal(signal); err != nil {
						t.Fatal(err)
					}
					signalled = time.Now()
				}
			}
			if err := cmd.Wait(); err != nil || signalled.IsZero() {
				t.Fatalf("ended with %v, signalled at %s", err, signalled)
			}
			if took := time.Since(signalled); took > 20*time.Second {
				t.Errorf("stopping took %s", took)
			}
		})
	}
}

// TestServerFewDescriptors: with 256 file descriptors, 400 idle clients keep no other
// client out, and the log contains the maximum number of connections.
func TestServerFewDescriptors(t *testing.T) {
	cmd := command(t, good("ORCH_LOG_JSON=true"), "server")
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 64 && ulimit -Hn 256 && exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var most, files int
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		var line struct {
			Message string `json:"@message"`
			Addr    string `json:"addr"`
			Most    int    `json:"max_connections"`
			Files   int    `json:"open_files"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Message != "listening" {
			continue
		}
		most, files = line.Most, line.Files
		for i := range 400 {
			conn, err := net.Dial("tcp", line.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if i%2 == 0 {
				_, _ = fmt.Fprint(conn, "GET /live HTTP/1.1\r\nHost: orch\r\n\r\n") // and then nothing
			}
		}
		began := time.Now()
		for range 5 {
			live(t, line.Addr)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("five responses took %s", took)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	// Go keeps one of them.
	if err := cmd.Wait(); err != nil || files < 255 || most != 128 {
		t.Errorf("ended with %v; %d connections with %d files", err, most, files)
	}
}

// TestServerSecondSignal: after the first signal the server waits for a request that does
// not end, or for the end of the drain delay; after the second it does not.
func TestServerSecondSignal(t *testing.T) {
	for _, delay := range []string{"0", "600"} {
		t.Run(delay, func(t *testing.T) { secondSignal(t, "ORCH_DRAIN_DELAY_S="+delay) })
	}
}

func secondSignal(t *testing.T, delay string) {
	cmd := command(t, good("ORCH_LOG_JSON=true", delay), "server")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var again time.Time
	var said string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		var line struct {
			Message string `json:"@message"`
			Addr    string `json:"addr"`
		}
		_ = json.Unmarshal(lines.Bytes(), &line) // the last line is not JSON
		said = lines.Text()
		switch {
		case line.Message == "listening":
			conn, err := net.Dial("tcp", line.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := fmt.Fprintf(conn, "POST /products/register HTTP/1.1\r\nHost: orch\r\nX-Admin-Key: %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", adminKey); err != nil {
				t.Fatal(err)
			}
			// The request is continued when it is being read.
			if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		case strings.HasPrefix(line.Message, "stopping"):
			again = time.Now()
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 || again.IsZero() || !strings.Contains(said, "again") {
		t.Errorf("exit code %d, last line %q", code, said)
	}
	if took := time.Since(again); took > 10*time.Second {
		t.Errorf("the second signal took %s", took)
	}
}

// live fails unless the service responds.
func live(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	c := &client.Client{BaseURL: "http://" + addr, HTTP: &http.Client{Transport: transport}}
	if err := c.Live(ctx); err != nil {
		t.Error(err)
	}
}
