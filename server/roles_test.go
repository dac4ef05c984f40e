package server

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/adminkeys"
)

// TestReadOnlyKey: a read-only key is refused for every method but GET and HEAD, before the
// body is read; and the access log names the key.
func TestReadOnlyKey(t *testing.T) {
	s := newCutOff(t)
	const reads = "a-key-that-only-reads"
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("dashboard read-only "+reads+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	named, err := adminkeys.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := adminkeys.NewSet(append(named, adminkeys.New(adminKey))...)
	if err != nil {
		t.Fatal(err)
	}
	s.SetAdminKeys(keys)
	s.LogRequests(s.log)
	changes := []struct{ method, path string }{
		{"POST", "/products/register"}, {"PUT", "/products/x/policy"}, {"DELETE", "/products/x"}, {"POST", "/reconcile"}, {"POST", "/registry/recover"},
		{"POST", "/provider-keys/apply"}, {"DELETE", "/unreachable-volumes/x"}, {"POST", "/nodes/x/adopt"}, {"POST", "/nodes/x/evacuate"}, {"DELETE", "/nodes/x/evacuate"}, {"DELETE", "/quarantine/x"}, {"POST", "/stored-engines/x/import"},
	}
	for _, c := range changes {
		want(t, s.send(c.method, c.path, "no json", "X-Admin-Key", reads), 403, engine.AdminKeyReadOnly)
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d calls to the agents", n)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		want(t, s.send(method, "/products", "", "X-Admin-Key", reads), 503, engine.BackendUnavailable)
	}
	want(t, s.send("POST", "/products/register", "no json", "X-Admin-Key", adminKey), 400, engine.InvalidRequest)
	if log := s.logs.String(); strings.Count(log, "admin=dashboard") != len(changes)+2 || strings.Count(log, "admin=admin") != 1 || strings.Contains(log, reads) {
		t.Errorf("the log is\n%s", log)
	}
}
