package commands

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTLS: commands trust the authority, and show the certificate, that the environment or
// the context names.
func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"products": [], "total": 0, "unreadable": []}`))
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	ca, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem")
	private, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		ca: {Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}, key: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, "")
	w.vars = map[string]string{urlVar: srv.URL, adminVar: "ak"}
	run := func(want int, says, name string, args ...string) {
		t.Helper()
		w.err.Reset()
		if code := w.run(name, args...); code != want || !strings.Contains(w.err.String(), says) {
			t.Errorf("%s %v: exit code %d, want %d with %q: %q", name, args, code, want, says, w.err.String())
		}
	}
	run(1, "certificate", "product list")
	w.vars[caVar] = ca
	run(1, "certificate", "product list") // without one of its own
	w.vars[certVar] = ca
	run(2, certVar, "product list") // without its key
	w.vars[certKeyVar] = key
	run(0, "", "product list")

	w.vars = map[string]string{adminVar: "ak"}
	run(2, "-ca-cert-file", "context add", "-address", srv.URL, "-ca-cert-file", filepath.Join(dir, "none"), "locked")
	run(2, "-client-cert-file", "context add", "-address", srv.URL, "-client-cert-file", ca, "locked")
	run(0, "", "context add", "-address", srv.URL, "-ca-cert-file", ca, "-client-cert-file", ca, "-client-key-file", key, "locked")
	run(0, "", "product list")
	w.vars[caVar] = key // a context with files takes none from the environment
	run(0, "", "product list")
}
