package storetest

import (
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Proxy is between a client and a server, and fails as tests want it to.
type Proxy struct {
	Addr string
	// CA is the authority of its certificate, in PEM format; empty: it does not use TLS.
	CA string

	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) bool
	seen []string
}

// StartProxy starts a proxy on loopback for the server at addr, which ends with the test.
func StartProxy(t *testing.T, addr string) *Proxy {
	t.Helper()
	return StartProxyOn(t, "127.0.0.1", addr)
}

// StartProxyOn starts a proxy that listens on an address of this machine, as one that
// containers reach.
func StartProxyOn(t *testing.T, host, addr string) *Proxy {
	t.Helper()
	return startProxy(t, host, addr, (*httptest.Server).Start)
}

// StartTLSProxy starts a proxy on loopback that uses TLS, with an authority of its own.
func StartTLSProxy(t *testing.T, addr string) *Proxy {
	t.Helper()
	return startProxy(t, "127.0.0.1", addr, (*httptest.Server).StartTLS)
}

func startProxy(t *testing.T, host, addr string, start func(*httptest.Server)) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{}
	to := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: addr})
		r.Out.Host = r.In.Host // it is signed
	}, ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.seen = append(p.seen, r.Method+" "+r.URL.Query().Get("partNumber"))
		hook := p.hook
		p.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		to.ServeHTTP(w, r)
	}))
	_ = s.Listener.Close()
	s.Listener = l
	start(s)
	t.Cleanup(s.Close)
	p.Addr = s.Listener.Addr().String()
	if c := s.Certificate(); c != nil {
		p.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return p
}

// Hook sets what is called with each request. If it returns true, the request is done.
func (p *Proxy) Hook(f func(w http.ResponseWriter, r *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// Seen returns the requests so far: the method and, of a part, its number.
func (p *Proxy) Seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.seen...)
}

// Status responds with a status and an error as S3 has it.
func Status(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>of the test</Message></Error>")
}

// Lose reads some of a request, and closes its connection.
func Lose(r *http.Request, after int64) {
	_, _ = io.CopyN(io.Discard, r.Body, after)
	panic(http.ErrAbortHandler)
}
