package service

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/registry"
)

// Clients are the addresses of Nomad, Consul and Vault, and how to reach them. Empty
// fields are filled from their clients' own variables (NOMAD_ADDR, CONSUL_HTTP_ADDR,
// VAULT_ADDR, ...).
type Clients struct {
	NomadAddr, NomadToken   string
	ConsulAddr, ConsulToken string
	VaultAddr, VaultToken   string
	// CACert, ClientCert and ClientKey are files in PEM format, for all three.
	CACert, ClientCert, ClientKey string
}

// CheckClients returns all mistakes in the clients' own variables. It does not show the
// addresses, because one may contain a password.
func CheckClients() error {
	var errs []error
	files := reload.New(hclog.NewNullLogger())
	for _, client := range []struct {
		address string
		make    func() (*link.Link, error)
	}{
		{"NOMAD_ADDR", func() (*link.Link, error) { _, l, err := nomadClient(Clients{}, files); return l, err }},
		{"CONSUL_HTTP_ADDR", func() (*link.Link, error) { _, _, l, err := consulClient(Clients{}, files); return l, err }},
		{"VAULT_ADDR", func() (*link.Link, error) { _, l, err := vaultClient(Clients{}, files); return l, err }},
	} {
		if address := os.Getenv(client.address); address != "" && !isAddress(address) {
			errs = append(errs, fmt.Errorf("%s: must be an address, as in http://127.0.0.1:8500", client.address))
			continue
		}
		l, err := client.make()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.Close()
	}
	return errors.Join(errs...)
}

// isAddress also accepts host:port, as Consul's client does.
func isAddress(s string) bool {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	return err == nil && (u.Host != "" || u.Scheme == "unix")
}

// newTransport configures how a client connects. Its link limits the number of connections.
// Each connection is used by one call only, also with TLS: with HTTP/2 all calls would share
// one connection, and if that is dead, all of them would fail until this is detected.
func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ForceAttemptHTTP2, t.Protocols = false, new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12} // the default one may offer HTTP/2
	t.DialContext = link.Dial(&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second})
	t.IdleConnTimeout = 10 * time.Second // an idle connection counts towards the store's limit for all clients at this address
	return t
}

// nomadClient returns a client of Nomad, whose certificates and token are read again by
// files, and the link that it uses.
func nomadClient(at Clients, files *reload.Watcher) (*nomad.Client, *link.Link, error) {
	cfg, t := nomad.DefaultConfig(), newTransport()
	if at.NomadAddr != "" {
		cfg.Address = at.NomadAddr
	}
	if at.NomadToken != "" {
		cfg.SecretID = at.NomadToken
	}
	if at.CACert != "" {
		cfg.TLSConfig.CACert, cfg.TLSConfig.ClientCert, cfg.TLSConfig.ClientKey = at.CACert, at.ClientCert, at.ClientKey
	}
	if socket, ok := strings.CutPrefix(cfg.Address, "unix://"); ok { // the API of a task
		dial := t.DialContext
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "unix", socket) }
	}
	cfg.HttpClient = &http.Client{Transport: t}
	paths := []string{cfg.TLSConfig.CACert, cfg.TLSConfig.CAPath, cfg.TLSConfig.ClientCert, cfg.TLSConfig.ClientKey}
	certs, err := secure(t, files, "nomad", "NOMAD_CACERT, NOMAD_CAPATH, NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY", paths, func() (*tls.Config, error) {
		fresh := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
		err := nomad.ConfigureTLS(&http.Client{Transport: fresh}, cfg.TLSConfig)
		return fresh.TLSClientConfig, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("NOMAD_ variables: %w", err)
	}
	c, err := nomad.NewClient(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("NOMAD_ variables: %w", err)
	}
	host := ""
	if u, err := url.Parse(c.Address()); err == nil {
		host = u.Host
		if u.Scheme == "unix" {
			host = "127.0.0.1" // as Nomad's client writes it into requests
		}
	}
	t.DisableCompression = true
	l := link.New(link.Nomad(host), t)
	certs.link.Store(l)
	to, err := withToken(l, files, nomadTokenFile, "X-Nomad-Token")
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	cfg.HttpClient.Transport = unpacked{to}
	return c, l, nil
}

// consulClient returns a client of Consul, a function for requests that the client does not
// know, and the link that both use.
func consulClient(at Clients, files *reload.Watcher) (*consul.Client, consulAsk, *link.Link, error) {
	t := newTransport()
	cfg := consul.DefaultConfigWithLogger(hclog.NewNullLogger())
	if at.ConsulAddr != "" {
		cfg.Address = at.ConsulAddr
	}
	if at.ConsulToken != "" {
		cfg.Token = at.ConsulToken
	}
	if at.CACert != "" {
		cfg.TLSConfig.CAFile, cfg.TLSConfig.CertFile, cfg.TLSConfig.KeyFile = at.CACert, at.ClientCert, at.ClientKey
	}
	// Consul compresses by default, which takes both sides more time than it saves for a
	// few rows.
	t.DisableCompression = true
	t.TLSClientConfig = nil // otherwise the client would not set its own
	cfg.Transport, cfg.TokenFile = t, ""
	c, err := consul.NewClient(cfg)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("CONSUL_ variables: %w", err)
	}
	// Use the transport that the client was given or made, for example for https or a Unix
	// socket.
	if made, ok := cfg.HttpClient.Transport.(*http.Transport); ok {
		t = made
	}
	paths := []string{cfg.TLSConfig.CAFile, cfg.TLSConfig.CAPath, cfg.TLSConfig.CertFile, cfg.TLSConfig.KeyFile}
	certs, err := secure(t, files, "consul", "CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY", paths, func() (*tls.Config, error) {
		c, err := consul.SetupTLSConfig(&cfg.TLSConfig)
		if err == nil {
			c.MinVersion = tls.VersionTLS12
		}
		return c, err
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("CONSUL_ variables: %w", err)
	}
	l := link.New(link.Consul, t)
	certs.link.Store(l)
	to, err := withToken(l, files, consulTokenFile, "X-Consul-Token")
	if err != nil {
		l.Close()
		return nil, nil, nil, err
	}
	cfg.HttpClient.Transport = registry.RawAnswers(to)
	return c, askConsul(cfg), l, nil
}

// consulAsk sends a POST request to Consul, and returns the status code.
type consulAsk func(ctx context.Context, path string, in, out any) (int, error)

// askConsul returns a consulAsk with the address, the transport and the token of a client's
// configuration.
func askConsul(cfg *consul.Config) consulAsk {
	return func(ctx context.Context, path string, in, out any) (int, error) {
		body, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		at := url.URL{Scheme: cfg.Scheme, Host: cfg.Address, Path: path}
		if strings.HasPrefix(cfg.Address, "/") { // a Unix socket
			at.Scheme, at.Host = "http", "localhost"
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		req.Header.Set("X-Consul-Token", cfg.Token)
		resp, err := cfg.HttpClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
			return resp.StatusCode, nil
		}
		return resp.StatusCode, json.NewDecoder(resp.Body).Decode(out)
	}
}

// vaultConfig is the configuration of Vault's client, with its files as they are now.
func vaultConfig(at Clients) (*vault.Config, error) {
	cfg := vault.DefaultConfig()
	if cfg.Error != nil {
		return nil, cfg.Error
	}
	if at.CACert != "" {
		err := cfg.ConfigureTLS(&vault.TLSConfig{CACert: at.CACert, ClientCert: at.ClientCert, ClientKey: at.ClientKey})
		return cfg, err
	}
	return cfg, nil
}

func vaultClient(at Clients, files *reload.Watcher) (*vault.Client, *link.Link, error) {
	t := newTransport()
	cfg, err := vaultConfig(at)
	if err != nil {
		return nil, nil, fmt.Errorf("VAULT_ variables: %w", err)
	}
	paths := []string{at.CACert, at.ClientCert, at.ClientKey}
	if at.CACert == "" {
		paths = []string{os.Getenv(vault.EnvVaultCACert), os.Getenv(vault.EnvVaultCAPath), os.Getenv(vault.EnvVaultClientCert), os.Getenv(vault.EnvVaultClientKey)}
	}
	certs, err := secure(t, files, "vault", "VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT, VAULT_CLIENT_KEY", paths, func() (*tls.Config, error) {
		fresh, err := vaultConfig(at)
		if err != nil {
			return nil, err
		}
		c := &tls.Config{MinVersion: tls.VersionTLS12}
		if own, ok := fresh.HttpClient.Transport.(*http.Transport); ok && own.TLSClientConfig != nil {
			c = own.TLSClientConfig.Clone()
			c.NextProtos = nil // Vault's client offers HTTP/2
		}
		return c, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("VAULT_ variables: %w", err)
	}
	l := link.New(link.Vault, t)
	certs.link.Store(l)
	cfg.HttpClient.Transport = l
	if at.VaultAddr != "" {
		cfg.Address = at.VaultAddr
	}
	// If Vault is down, fail now with 503 instead of after the client's own retries.
	cfg.MaxRetries = 0
	c, err := vault.NewClient(cfg)
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("VAULT_ variables: %w", err)
	}
	if at.VaultToken != "" {
		c.SetToken(at.VaultToken)
	}
	if file := os.Getenv(vaultTokenFile); file != "" {
		token, err := reload.Token(file)
		if err != nil {
			l.Close()
			return nil, nil, fmt.Errorf("%s: %w", vaultTokenFile, err)
		}
		c.SetToken(token)
	}
	return c, l, nil
}
