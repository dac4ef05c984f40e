package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const testKey = "sk-sept-test"

// binary is the engine under test, built once without cgo, as in the image.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "reference-engine-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "reference-engine")
		build := exec.Command("go", "build", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if code == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return code
	}())
}

func hashOf(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:])
}

// output collects a process's stderr. It may be read while the process runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// process is one engine process.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *output
	done chan struct{} // closed when it has ended
	url  string
}

// spawn starts an engine with the brain in dir and additional variables and switches,
// without waiting.
func spawn(t *testing.T, dir string, env []string, switches ...string) *process {
	return spawnAs(t, binary, dir, env, switches...)
}

func spawnAs(t *testing.T, path, dir string, env []string, switches ...string) *process {
	t.Helper()
	p := &process{t: t, log: &output{}, done: make(chan struct{})}
	p.cmd = exec.Command(path, switches...)
	p.cmd.Env = append([]string{
		"HOST=127.0.0.1", "PORT=0",
		"ENGINE_KEY_HASH=" + hashOf(testKey),
		"SQLITE_DB_PATH=" + filepath.Join(dir, "brain.sqlite"),
	}, env...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("engine %v:\n%s", switches, p.log)
		}
	})
	return p
}

// start is like spawn, and waits until the engine listens.
func start(t *testing.T, dir string, env []string, switches ...string) *process {
	t.Helper()
	p := spawn(t, dir, env, switches...)
	p.waitListening()
	return p
}

var listening = regexp.MustCompile(`msg=listening addr=(\S+)`)

func (p *process) waitListening() {
	p.t.Helper()
	eventually(p.t, "the engine listens", func() bool {
		m := listening.FindStringSubmatch(p.log.String())
		if m != nil {
			p.url = "http://" + m[1]
		}
		return m != nil
	})
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// exitCode waits until the process has ended; -1: it was killed by a signal.
func (p *process) exitCode() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		p.t.Fatal("the process does not exit")
		return 0
	}
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) waitLog(text string) {
	p.t.Helper()
	eventually(p.t, "log contains "+text, func() bool { return strings.Contains(p.log.String(), text) })
}

// eventually polls a condition until a deadline.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

// client opens a connection per request, because a persistent one would hide a closed port.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// call makes one request with a key ("" for none), and returns status and body; status 0
// means that there was no response.
func (p *process) call(method, path, key, body string) (int, string) {
	p.t.Helper()
	status, answer, err := request(context.Background(), p.url, method, path, key, body)
	if err != nil {
		return 0, err.Error()
	}
	return status, answer
}

func request(ctx context.Context, url, method, path, key, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// remember stores an input, and fails unless it is acknowledged.
func (p *process) remember(input string) {
	p.t.Helper()
	body, _ := json.Marshal(map[string]string{"input": input})
	if status, answer := p.call("POST", "/execute", testKey, string(body)); status != 200 {
		p.t.Fatalf("POST /execute: %d %s", status, answer)
	}
}

type exported struct {
	Memories []struct{ Input string }
	Runs     []struct {
		PID       int
		StartedAt time.Time  `json:"started_at"`
		EndedAt   *time.Time `json:"ended_at"`
	}
}

func (p *process) export() exported {
	p.t.Helper()
	status, answer := p.call("GET", "/memory/export", testKey, "")
	var e exported
	if err := json.Unmarshal([]byte(answer), &e); err != nil || status != 200 {
		p.t.Fatalf("GET /memory/export: %d %s: %v", status, answer, err)
	}
	return e
}

func (p *process) inputs() []string {
	p.t.Helper()
	inputs := []string{}
	for _, m := range p.export().Memories {
		inputs = append(inputs, m.Input)
	}
	return inputs
}
