package service

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/reload"
)

// engineCAs returns the authorities of engines' certificates in a file, which is read again
// by files; nil: there is no file.
func engineCAs(file string, files *reload.Watcher) (func() *x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	var current atomic.Pointer[x509.CertPool]
	err := files.Add("engines", "ORCH_ENGINE_CA_FILE", []string{file}, func() (*x509.Certificate, error) {
		pool, err := reload.Pool(file)
		if err == nil {
			current.Store(pool)
		}
		return nil, err
	})
	return current.Load, err
}

// serverTLS returns the TLS configuration of the listener, whose files are read again by
// files; nil: plain HTTP. With an authority for clients, each client must have a
// certificate.
func serverTLS(cfg *config.Config, files *reload.Watcher) (*tls.Config, error) {
	if cfg.TLSCertFile == "" {
		return nil, nil
	}
	var current atomic.Pointer[tls.Config]
	load := func() (*x509.Certificate, error) {
		pair, err := reload.Pair(cfg.TLSCertFile, cfg.TLSKeyFile)
		if err != nil {
			return nil, err
		}
		if before := current.Load(); before != nil {
			if err := reload.Replaces(before.Certificates[0].Leaf, pair.Leaf, time.Now()); err != nil {
				return nil, err
			}
		}
		c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
		if cfg.TLSClientCAFile != "" {
			if c.ClientCAs, err = reload.Pool(cfg.TLSClientCAFile); err != nil {
				return nil, err
			}
			c.ClientAuth = tls.RequireAndVerifyClientCert
			c.SessionTicketsDisabled = true // a resumed session would keep a removed authority
		}
		current.Store(c)
		return pair.Leaf, nil
	}
	variables := "ORCH_TLS_CERT_FILE, ORCH_TLS_KEY_FILE, ORCH_TLS_CLIENT_CA_FILE"
	if err := files.Add("server", variables, []string{cfg.TLSCertFile, cfg.TLSKeyFile, cfg.TLSClientCAFile}, load); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil },
	}, nil
}
