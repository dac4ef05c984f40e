package server_test

import (
	"bufio"
	"crypto/tls"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/reload"
)

// trusting returns a client's configuration for servers with a certificate of an authority.
func trusting(t testing.TB, ca string) *tls.Config {
	t.Helper()
	pool, err := reload.Pool(ca)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// newAuthority makes an authority, and the certificate of a server on loopback.
func newAuthority(t *testing.T) (a *devstack.Authority, vars []string) {
	t.Helper()
	a, err := devstack.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := issue(t, a, "server")
	return a, []string{"ORCH_TLS_CERT_FILE=" + cert, "ORCH_TLS_KEY_FILE=" + key}
}

func issue(t *testing.T, a *devstack.Authority, name string) (cert, key string) {
	t.Helper()
	cert, key, err := a.Issue(name, time.Hour, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// heldConn is a connection that a client keeps open.
type heldConn struct {
	*tls.Conn
	serial string // of the server's certificate
}

func hold(t *testing.T, a *api, ca string) *heldConn {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(a.url, "https://"), trusting(t, ca))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &heldConn{conn, conn.ConnectionState().PeerCertificates[0].SerialNumber.String()}
}

// works fails unless the server responds on this connection.
func (c *heldConn) works(t *testing.T) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("GET /live HTTP/1.1\r\nHost: orch\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// TestHTTPS: TLS 1.2 or newer, HTTP/2, and certificates that are replaced in place while
// connections stay open.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	ca, vars := newAuthority(t)
	a := startAPI(t, vars...)
	addr := strings.TrimPrefix(a.url, "https://")

	t.Run("Protocols", func(t *testing.T) {
		resp, err := a.http.Get(a.url + "/live")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
			t.Errorf("%s %s", resp.Proto, resp.Status)
		}
		old := trusting(t, ca.CAFile())
		old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if conn, err := tls.Dial("tcp", addr, old); err == nil {
			_ = conn.Close()
			t.Error("TLS 1.1 is accepted")
		}
		plain, err := http.Get("http://" + addr + "/live")
		if err != nil {
			t.Fatal(err)
		}
		_ = plain.Body.Close()
		if plain.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP gets %s", plain.Status)
		}
	})
	t.Run("Replaced", func(t *testing.T) {
		first := hold(t, a, ca.CAFile())
		first.works(t)
		cert, _ := issue(t, ca, "server")
		var next *heldConn
		for until := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if next = hold(t, a, ca.CAFile()); next.serial != first.serial {
				break
			}
			if time.Now().After(until) {
				t.Fatal("the new certificate is not used")
			}
		}
		first.works(t)
		next.works(t)

		issue(t, ca, "server")
		a.svc.Reload() // as SIGHUP does
		last := hold(t, a, ca.CAFile())
		if last.serial == next.serial {
			t.Error("after SIGHUP the certificate before is used")
		}
		if err := os.WriteFile(cert, []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		a.svc.Reload()
		if got := hold(t, a, ca.CAFile()); got.serial != last.serial {
			t.Error("a file that cannot be used changes the certificate")
		}
		first.works(t)
	})
}

// TestClientCertificates: with authorities for clients, only clients with a certificate of
// one of them are served, also by the Go client, and the authorities can be replaced.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, vars := newAuthority(t)
	clients, err := devstack.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	url, files := "", client.TLS{CACert: ca.CAFile()}
	ask := func(files client.TLS) error {
		h, err := files.HTTPClient()
		if err != nil {
			t.Fatal(err)
		}
		defer h.CloseIdleConnections()
		return (&client.Client{BaseURL: url, HTTP: h}).Live(t.Context())
	}
	own := files
	own.ClientCert, own.ClientKey = issue(t, clients, "client")
	strange := files
	strange.ClientCert, strange.ClientKey = issue(t, ca, "strange")

	svc := serve(t, append(vars, "ORCH_TLS_CLIENT_CA_FILE="+clients.CAFile())...)
	url = "https://" + svc.Server.Addr().String()
	if err := ask(own); err != nil {
		t.Error(err)
	}
	for name, files := range map[string]client.TLS{"no certificate": files, "one of another authority": strange} {
		if ask(files) == nil {
			t.Errorf("%s: it is served", name)
		}
	}
	b, err := os.ReadFile(ca.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(clients.CAFile(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	svc.Reload()
	if err := ask(strange); err != nil {
		t.Errorf("after its authority was added: %v", err)
	}
	if ask(own) == nil {
		t.Error("a client of a removed authority is served")
	}
}
