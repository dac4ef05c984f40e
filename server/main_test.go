package server

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/adminkeys"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; code == 0 && !fuzzing {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const adminKey = "admin-key-of-the-tests"

// cutOff is a server whose Nomad, Consul and Vault close every connection at once. It
// responds to what it can handle itself; the rest gets 503.
type cutOff struct {
	*Server
	calls atomic.Int64 // connections to the agents
	logs  logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCutOff(tb testing.TB) *cutOff {
	tb.Helper()
	s := &cutOff{}
	agents, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := agents.Accept()
			if err != nil {
				return
			}
			s.calls.Add(1)
			_ = conn.Close()
		}
	})
	tb.Cleanup(func() { _ = agents.Close(); accepting.Wait() })
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	at, transport := "http://"+agents.Addr().String(), &http.Transport{DisableKeepAlives: true}
	c, err := consul.NewClient(&consul.Config{Address: at, Transport: transport})
	must(err)
	n, err := nomad.NewClient(&nomad.Config{Address: at, HttpClient: &http.Client{Transport: transport}})
	must(err)
	cfg := vault.DefaultConfig()
	cfg.Address, cfg.MaxRetries, cfg.HttpClient.Transport = at, 0, transport
	v, err := vault.NewClient(cfg)
	must(err)
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &s.logs})
	opts := scheduler.Options{Job: jobs.Settings{Driver: jobs.RawExec}, DefaultImage: "engine", BootTimeout: time.Minute, ProbeTimeout: time.Second}
	rows, err := audit.Open(tb.Context(), "sqlite://"+filepath.Join(tb.TempDir(), "audit.db"), audit.Options{RetentionDays: 1, Log: log})
	must(err)
	tb.Cleanup(func() { must(rows.Close()) })
	sched := scheduler.New(opts, registry.New(c, "orch/"), cluster.New(n, "default", cluster.Mkdir, log), secrets.New(v, "orch"), rows, log)
	keys, err := adminkeys.NewSet(adminkeys.New(adminKey))
	must(err)
	s.Server, err = New("127.0.0.1:0", keys, sched, log)
	must(err)
	tb.Cleanup(func() { must(s.Close()) })
	return s
}

// send makes the whole handler respond to one request; headers are name, value, ...
func (s *cutOff) send(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header[http.CanonicalHeaderKey(headers[i])] = []string{headers[i+1]}
	}
	return s.answer(r)
}

func (s *cutOff) answer(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, r)
	return w
}

// checkForm fails unless a response has the form in docs/api.md ("Conventions"), and returns
// its error code and message.
func checkForm(tb testing.TB, w *httptest.ResponseRecorder) (code, message string) {
	tb.Helper()
	id := w.Header().Get("X-Request-Id")
	if !sane.MatchString(id) {
		tb.Fatalf("%d with X-Request-Id %q", w.Code, id)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json; charset=utf-8" {
		tb.Fatalf("%d with Content-Type %q", w.Code, ct)
	}
	if w.Code == http.StatusServiceUnavailable || w.Code == http.StatusTooManyRequests {
		if s, err := strconv.Atoi(w.Header().Get("Retry-After")); err != nil || s < 1 {
			tb.Fatalf("%d with Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
	}
	var body struct {
		Error *struct {
			Code      string `json:"code"`
			Message   string `json:"message"`
			RequestID string `json:"request_id"`
		} `json:"error"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		tb.Fatalf("%d with body %q: %v", w.Code, w.Body, err)
	}
	if body.Error == nil {
		return "", ""
	}
	if body.Error.RequestID != id {
		tb.Fatalf("request_id is %q, X-Request-Id is %q", body.Error.RequestID, id)
	}
	if body.Error.Message == "" || len(body.Error.Message) > 1024 {
		tb.Fatalf("message is %q", body.Error.Message)
	}
	return body.Error.Code, body.Error.Message
}

// want fails unless a response is this error, and returns its message.
func want(tb testing.TB, w *httptest.ResponseRecorder, status int, code engine.Code) string {
	tb.Helper()
	got, message := checkForm(tb, w)
	if w.Code != status || got != string(code) {
		tb.Fatalf("got %d %s (%s), want %d %s", w.Code, got, message, status, code)
	}
	return message
}
