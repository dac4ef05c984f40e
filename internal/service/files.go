package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/secrets"
)

// The variables that name the files of tokens. Consul's is that of its own tools; Nomad's
// and Vault's tools have none. A file takes precedence over the variable with a token.
const (
	nomadTokenFile  = "NOMAD_TOKEN_FILE"
	consulTokenFile = "CONSUL_HTTP_TOKEN_FILE" //nolint:gosec // G101: the name of a variable
	vaultTokenFile  = "VAULT_TOKEN_FILE"
)

// handshakeTimeout limits a TLS handshake with a store.
const handshakeTimeout = 10 * time.Second

// secured is a client's TLS configuration, made of files that are read again.
type secured struct {
	now  atomic.Pointer[tls.Config]
	link atomic.Pointer[link.Link] // whose connections must be made anew after a change
}

// secure makes the connections of t use the configuration that load returns, and that it
// returns again when one of the files has changed.
func secure(t *http.Transport, files *reload.Watcher, store, variables string, paths []string, load func() (*tls.Config, error)) (*secured, error) {
	s := &secured{}
	err := files.Add(store, variables, paths, func() (*x509.Certificate, error) {
		c, err := load()
		if err != nil {
			return nil, err
		}
		own, err := ownCertificate(c)
		if err != nil {
			return nil, err
		}
		if before := s.now.Load(); before != nil && own != nil {
			if old, err := ownCertificate(before); err == nil {
				if err := reload.Replaces(old, own, time.Now()); err != nil {
					return nil, err
				}
			}
		}
		s.now.Store(c)
		if l := s.link.Load(); l != nil {
			l.CloseIdle() // calls in progress end on the connections that they have
		}
		return own, nil
	})
	if err != nil {
		return nil, err
	}
	t.TLSClientConfig = s.now.Load().Clone() // through a proxy, these files are read once
	dial := t.DialContext
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return handshake(ctx, conn, address, s.now.Load())
	}
	return s, nil
}

// handshake makes a TLS connection of conn.
func handshake(ctx context.Context, conn net.Conn, address string, c *tls.Config) (net.Conn, error) {
	if c.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		c = c.Clone()
		c.ServerName = host
	}
	limited, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	over := tls.Client(conn, c)
	if err := over.HandshakeContext(limited); err != nil {
		// net/http reports only handshakes that it makes itself; package link must know that
		// the store closed the connection.
		if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.TLSHandshakeDone != nil {
			trace.TLSHandshakeDone(tls.ConnectionState{}, err)
		}
		_ = conn.Close()
		return nil, err
	}
	return over, nil
}

// ownCertificate returns the client certificate of a configuration; nil: it has none.
func ownCertificate(c *tls.Config) (*x509.Certificate, error) {
	var pair *tls.Certificate
	switch {
	case len(c.Certificates) > 0:
		pair = &c.Certificates[0]
	case c.GetClientCertificate != nil: // Vault's client
		var err error
		if pair, err = c.GetClientCertificate(&tls.CertificateRequestInfo{}); err != nil {
			return nil, err
		}
	}
	if pair == nil || len(pair.Certificate) == 0 {
		return nil, nil
	}
	return x509.ParseCertificate(pair.Certificate[0])
}

// tokened sends requests with the token in a file, which is read again.
type tokened struct {
	next   http.RoundTripper
	header string
	now    atomic.Pointer[string]
}

// withToken returns next, or, if the variable names a file, a tokened that uses it.
func withToken(next http.RoundTripper, files *reload.Watcher, variable, header string) (http.RoundTripper, error) {
	file := os.Getenv(variable)
	if file == "" {
		return next, nil
	}
	t := &tokened{next: next, header: header}
	return t, watchToken(files, variable, file, func(token string) { t.now.Store(&token) })
}

func watchToken(files *reload.Watcher, variable, file string, use func(token string)) error {
	err := files.Add(variable, variable, []string{file}, func() (*x509.Certificate, error) {
		token, err := reload.Token(file)
		if err == nil {
			use(token)
		}
		return nil, err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

// RoundTrip sends a request with the token.
func (t *tokened) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(t.header, *t.now.Load())
	return t.next.RoundTrip(r)
}

// vaultToken makes keys use the token in a file, if there is one.
func vaultToken(keys *secrets.Vault, files *reload.Watcher) error {
	if file := os.Getenv(vaultTokenFile); file != "" {
		return watchToken(files, vaultTokenFile, file, keys.UseToken)
	}
	return nil
}
