package service

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	vault "github.com/hashicorp/vault/api"
)

// TestClientsTrustTheirOwnCA: each client uses the TLS settings in its own variables,
// although the service sets their transports.
func TestClientsTrustTheirOwnCA(t *testing.T) {
	asked := make(chan string, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		_, _ = w.Write([]byte(`"127.0.0.1:1"`))
	}))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		address, ca string
		ask         func() error
	}{
		"Nomad": {"NOMAD_ADDR", "NOMAD_CACERT", func() error {
			c, l, err := nomadClient(Clients{})
			if err == nil {
				defer l.Close()
				_, err = c.Status().Leader()
			}
			return err
		}},
		"Consul": {"CONSUL_HTTP_ADDR", "CONSUL_CACERT", func() error {
			c, l, err := consulClient(Clients{})
			if err == nil {
				defer l.Close()
				_, err = c.Status().Leader()
			}
			return err
		}},
		"Vault": {"VAULT_ADDR", "VAULT_CACERT", func() error {
			c, l, err := vaultClient(Clients{})
			if err == nil {
				defer l.Close()
				var resp *vault.Response
				if resp, err = c.Logical().ReadRaw("sys/seal-status"); resp != nil {
					_ = resp.Body.Close()
				}
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(tc.address, srv.URL)
			if err := tc.ask(); err == nil {
				t.Error("a server of an unknown authority is trusted")
			}
			t.Setenv(tc.ca, ca)
			if err := tc.ask(); err != nil {
				t.Fatal(err)
			}
			<-asked
		})
	}
}

// TestConsulDoesNotPack: every admit waits for a response of Consul, which must not be
// compressed.
func TestConsulDoesNotPack(t *testing.T) {
	accepts := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accepts <- r.Header.Get("Accept-Encoding")
		_, _ = w.Write([]byte(`"127.0.0.1:1"`))
	}))
	defer srv.Close()
	c, l, err := consulClient(Clients{ConsulAddr: srv.URL})
	if err == nil {
		defer l.Close()
		_, err = c.Status().Leader()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := <-accepts; got != "" {
		t.Errorf("the encoding %q is requested from Consul", got)
	}
}

// TestClientMistakesAreNamed: all mistakes are reported together, by variable.
func TestClientMistakesAreNamed(t *testing.T) {
	t.Setenv("NOMAD_ADDR", "::secret")
	t.Setenv("CONSUL_HTTP_ADDR", "http://[secret")
	t.Setenv("VAULT_ADDR", "%%secret")
	err := CheckClients()
	if err == nil {
		t.Fatal("all of them are fine")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 3 || strings.Contains(err.Error(), "secret") {
		t.Errorf("got\n%v", err)
	}
	for i, name := range []string{"NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR"} {
		if i < len(lines) && !strings.HasPrefix(lines[i], name+": ") {
			t.Errorf("line %d is %q, want one about %s", i+1, lines[i], name)
		}
	}
	t.Setenv("NOMAD_ADDR", "https://nomad.example:4646")
	t.Setenv("CONSUL_HTTP_ADDR", "consul.example:8500")
	t.Setenv("VAULT_ADDR", "https://vault.example")
	if err := CheckClients(); err != nil {
		t.Error(err)
	}
	t.Setenv("CONSUL_HTTP_SSL", "true")
	t.Setenv("CONSUL_CACERT", "/no/such/file")
	if err := CheckClients(); err == nil || !strings.HasPrefix(err.Error(), "CONSUL_") {
		t.Errorf("a CA file that is not there: %v", err)
	}
}
