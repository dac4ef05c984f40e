package service

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

	"github.com/hashicorp/go-hclog"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/reload"
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
			c, l, err := nomadClient(Clients{}, reload.New(hclog.NewNullLogger()))
			if err == nil {
				defer l.Close()
				_, err = c.Status().Leader()
			}
			return err
		}},
		"Consul": {"CONSUL_HTTP_ADDR", "CONSUL_CACERT", func() error {
			c, _, l, err := consulClient(Clients{}, reload.New(hclog.NewNullLogger()))
			if err == nil {
				defer l.Close()
				_, err = c.Status().Leader()
			}
			return err
		}},
		"Vault": {"VAULT_ADDR", "VAULT_CACERT", func() error {
			c, l, err := vaultClient(Clients{}, reload.New(hclog.NewNullLogger()))
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
	c, _, l, err := consulClient(Clients{ConsulAddr: srv.URL}, reload.New(hclog.NewNullLogger()))
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

// TestClientsIdentifyThemselves: each client shows the certificate and sends the token
// that it was given, on a connection that carries one call at a time.
func TestClientsIdentifyThemselves(t *testing.T) {
	type seen struct {
		proto, token string
		certificates int
	}
	asked := make(chan seen, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var token string
		for _, name := range []string{"X-Nomad-Token", "X-Consul-Token", "X-Vault-Token"} {
			token += r.Header.Get(name)
		}
		asked <- seen{r.Proto, token, len(r.TLS.PeerCertificates)}
		_, _ = w.Write([]byte(`"127.0.0.1:1"`))
	}))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	at := Clients{
		NomadAddr: srv.URL, NomadToken: "of nomad", ConsulAddr: srv.URL, ConsulToken: "of consul", VaultAddr: srv.URL, VaultToken: "of vault",
		CACert: filepath.Join(dir, "ca.pem"), ClientCert: filepath.Join(dir, "ca.pem"), ClientKey: filepath.Join(dir, "key.pem"),
	}
	key, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		at.CACert: {Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}, at.ClientKey: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for store, ask := range map[string]func() (*link.Link, error){
		"nomad": func() (*link.Link, error) {
			c, l, err := nomadClient(at, reload.New(hclog.NewNullLogger()))
			if err == nil {
				_, err = c.Status().Leader()
			}
			return l, err
		},
		"consul": func() (*link.Link, error) {
			c, _, l, err := consulClient(at, reload.New(hclog.NewNullLogger()))
			if err == nil {
				_, err = c.Status().Leader()
			}
			return l, err
		},
		"vault": func() (*link.Link, error) {
			c, l, err := vaultClient(at, reload.New(hclog.NewNullLogger()))
			if err == nil {
				var resp *vault.Response
				if resp, err = c.Logical().ReadRaw("sys/seal-status"); resp != nil {
					_ = resp.Body.Close()
				}
			}
			return l, err
		},
	} {
		t.Run(store, func(t *testing.T) {
			l, err := ask()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if got, want := <-asked, (seen{"HTTP/1.1", "of " + store, 1}); got != want {
				t.Errorf("the store saw %+v, want %+v", got, want)
			}
		})
	}
}
