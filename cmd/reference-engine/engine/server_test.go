package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "sk-sept-test"

func hashOf(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:])
}

// newServer returns a server with a new brain, without a listener.
func newServer(t *testing.T, env map[string]string, log *slog.Logger) *server {
	t.Helper()
	vars := map[string]string{
		"ENGINE_KEY_HASH": hashOf(testKey),
		"SQLITE_DB_PATH":  filepath.Join(t.TempDir(), "brain.sqlite"),
	}
	for k, v := range env {
		vars[k] = v
	}
	cfg, err := LoadConfig([]string{"reference-engine"}, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	brain, err := OpenBrain(t.Context(), cfg.BrainPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = brain.Close(context.Background()) })
	keys, err := newKeyring(cfg.KeySource)
	if err != nil {
		t.Fatal(err)
	}
	return &server{cfg: cfg, brain: brain, keys: keys, log: log, started: time.Now(), exit: func(int) {}}
}

func do(s *server, method, path string, header http.Header, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, r)
	return w
}

func withKey(more ...string) http.Header {
	h := http.Header{"X-Engine-Key": {testKey}}
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return h
}

func code(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return e.Error.Code
}

func TestKeyCheckComesFirst(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil, slog.New(slog.DiscardHandler))
	keys := map[string]http.Header{
		"none":         {},
		"empty":        {"X-Engine-Key": {""}},
		"wrong":        {"X-Engine-Key": {"wrong"}},
		"the hash":     {"X-Engine-Key": {hashOf(testKey)}},
		"space after":  {"X-Engine-Key": {testKey + " "}},
		"two":          {"X-Engine-Key": {testKey, testKey}},
		"other header": {"X-Platform-Key": {testKey}},
	}
	paths := []string{"/", "/execute", "/memory/export", "/catalog", "/env", "/info", "/work", "/crash",
		"/nowhere", "/health/", "/health/x", "//health", "/x/../health", "/HEALTH", "/%2e/health"}
	for name, h := range keys {
		for _, path := range paths {
			for _, method := range []string{"GET", "POST", "OPTIONS"} {
				w := do(s, method, path, h, "")
				if w.Code != 401 || code(t, w) != "INVALID_ENGINE_KEY" {
					t.Errorf("key %s: %s %s: %d %s, want 401", name, method, path, w.Code, w.Body)
				}
			}
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil, slog.New(slog.DiscardHandler))
	tests := map[string]struct {
		method, path, body string
		header             http.Header
		status             int
		code               string
	}{
		"OKHealthOpen":         {method: "GET", path: "/health", status: 200},
		"OKHealthWrongKey":     {method: "GET", path: "/health", header: http.Header{"X-Engine-Key": {"wrong"}}, status: 200},
		"ErrHealthMethod":      {method: "POST", path: "/health", status: 405, code: "METHOD_NOT_ALLOWED"},
		"OKExecute":            {method: "POST", path: "/execute", header: withKey(), body: `{"input":"x"}`, status: 200},
		"OKExecuteCharset":     {method: "POST", path: "/execute", header: withKey("Content-Type", "application/json; charset=utf-8"), body: `{"input":"x"}`, status: 200},
		"ErrExecuteType":       {method: "POST", path: "/execute", header: withKey("Content-Type", "text/plain"), body: `{"input":"x"}`, status: 415, code: "UNSUPPORTED_MEDIA_TYPE"},
		"ErrExecuteBody":       {method: "POST", path: "/execute", header: withKey(), body: `{"input":1}`, status: 400, code: "INVALID_REQUEST"},
		"ErrExecuteTooLarge":   {method: "POST", path: "/execute", header: withKey(), body: strings.Repeat(" ", maxBody+1), status: 413, code: "BODY_TOO_LARGE"},
		"ErrExecuteMethod":     {method: "GET", path: "/execute", header: withKey(), status: 405, code: "METHOD_NOT_ALLOWED"},
		"ErrUnknown":           {method: "GET", path: "/nowhere", header: withKey(), status: 404, code: "NOT_FOUND"},
		"ErrUncleanNoRedirect": {method: "GET", path: "//health", header: withKey(), status: 404, code: "NOT_FOUND"},
		"ErrEnvNoNames":        {method: "GET", path: "/env", header: withKey(), status: 400, code: "INVALID_REQUEST"},
		"OKCatalogUnset":       {method: "GET", path: "/catalog", header: withKey(), status: 200},
		"OKExport":             {method: "GET", path: "/memory/export", header: withKey(), status: 200},
		"ErrWork":              {method: "POST", path: "/work", header: withKey(), body: `{"seconds":-1}`, status: 400, code: "INVALID_REQUEST"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := do(s, tt.method, tt.path, tt.header, tt.body)
			if w.Code != tt.status {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, tt.status)
			}
			if tt.code != "" && code(t, w) != tt.code {
				t.Errorf("code %s, want %s", code(t, w), tt.code)
			}
			if w.Code == 405 && w.Header().Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if ct := w.Header().Get("Content-Type"); ct != "application/json; charset=utf-8" {
				t.Errorf("content type %q", ct)
			}
		})
	}
}

func TestHealthProbesTheBrain(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := newServer(t, nil, slog.New(slog.NewTextHandler(&log, nil)))
	var got map[string]any
	health := func() int {
		t.Helper()
		w := do(s, "GET", "/health", nil, "")
		got = nil
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return w.Code
	}
	check := func(status int, want map[string]any) {
		t.Helper()
		if c := health(); c != status {
			t.Errorf("status %d, want %d", c, status)
		}
		if up, ok := got["uptime_seconds"].(float64); !ok || up <= 0 {
			t.Errorf("uptime %v", got["uptime_seconds"])
		}
		delete(got, "uptime_seconds")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("health (-want +got):\n%s", diff)
		}
	}
	ok := map[string]any{"status": "ok", "subsystems": map[string]any{"brain": "ok"}}
	failing := map[string]any{"status": "failing", "subsystems": map[string]any{"brain": "failing"}}
	check(200, ok)

	do(s, "POST", "/work", withKey(), `{"seconds":60}`)
	check(200, map[string]any{"status": "ok", "busy": true, "subsystems": map[string]any{"brain": "ok"}})
	do(s, "POST", "/work", withKey(), `{"seconds":0}`)
	check(200, ok)

	path := s.cfg.BrainPath
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	check(503, failing)
	check(503, failing)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check(503, failing) // there is a file, but another one
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	check(200, ok)
	if n := strings.Count(log.String(), "health changed"); n != 2 {
		t.Errorf("%d log lines, want one for each of the 2 changes:\n%s", n, &log)
	}

	// A brain that is readable but not writable is unhealthy.
	if _, err := s.brain.writer.Exec(`PRAGMA query_only(1)`); err != nil {
		t.Fatal(err)
	}
	if w := do(s, "POST", "/execute", withKey(), `{"input":"x"}`); w.Code != 500 || strings.Contains(w.Body.String(), "readonly") {
		t.Errorf("%d %s, want a 500 without the cause", w.Code, w.Body)
	}
	check(503, failing)
	if _, err := s.brain.writer.Exec(`PRAGMA query_only(0)`); err != nil {
		t.Fatal(err)
	}
	check(200, ok)
}

func TestEnvironmentShowsHashesOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t, map[string]string{"LLM_API_KEY": "secret-value", "EMPTY": ""}, slog.New(slog.DiscardHandler))
	w := do(s, "GET", "/env?names=LLM_API_KEY,EMPTY,UNSET", withKey(), "")
	if strings.Contains(w.Body.String(), "secret-value") {
		t.Fatal("a value got out")
	}
	var got any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"variables": map[string]any{
		"LLM_API_KEY": map[string]any{"set": true, "sha256": hashOf("secret-value")},
		"EMPTY":       map[string]any{"set": true, "sha256": hashOf("")},
		"UNSET":       map[string]any{"set": false},
	}}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
}

func TestCatalog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "b.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, map[string]string{"CATALOG_DIR": dir}, slog.New(slog.DiscardHandler))
	got := strings.TrimSpace(do(s, "GET", "/catalog", withKey(), "").Body.String())
	if want := `{"files":[{"name":"sub/b.json","size":2}],"writable":true}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.cfg.CatalogDir = filepath.Join(dir, "missing")
	if w := do(s, "GET", "/catalog", withKey(), ""); w.Code != 503 || code(t, w) != "CATALOG_UNAVAILABLE" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
