package main

import (
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

// pages serves the agents' own web pages over plain HTTP on loopback. A browser knows
// neither the stack's certificate authority nor has it a certificate to show. What a
// browser may see there is up to the token that its user enters: pages adds none.
type pages struct {
	nomad, consul, vault string // addresses
	servers              []*http.Server
}

// servePages opens the listeners; on an open stack the agents' own do.
func servePages(stack *devstack.Stack) (*pages, error) {
	p := &pages{nomad: stack.NomadAddr, consul: stack.ConsulAddr, vault: stack.VaultAddr}
	if stack.TLS() == nil {
		return p, nil
	}
	for _, addr := range []*string{&p.nomad, &p.consul, &p.vault} {
		agent, err := url.Parse(*addr)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		proxy := &httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(agent) },
			Transport:     &http.Transport{TLSClientConfig: stack.TLS()},
			FlushInterval: -1, // logs are followed there
		}
		server := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
		p.servers = append(p.servers, server)
		go func() { _ = server.Serve(listener) }() // until close
		*addr = "http://" + listener.Addr().String()
	}
	return p, nil
}

func (p *pages) close() error {
	var errs []error
	for _, server := range p.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(errs...)
}
