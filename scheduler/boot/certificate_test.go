package boot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/secrets"
)

// pki is an authority for engines.
type pki struct {
	*devstack.Authority
	t *testing.T
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	a, err := devstack.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &pki{a, t}
}

// trusted returns the authority's certificate.
func (p *pki) trusted() *x509.CertPool {
	p.t.Helper()
	pool, err := reload.Pool(p.CAFile())
	if err != nil {
		p.t.Fatal(err)
	}
	return pool
}

// pair returns a certificate for these hosts.
func (p *pki) pair(life time.Duration, hosts ...string) tls.Certificate {
	p.t.Helper()
	cert, key, err := p.Issue("engine", life, hosts...)
	if err != nil {
		p.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		p.t.Fatal(err)
	}
	return pair
}

// tlsEngine responds as an engine with testKey does, over TLS; with no certificate, over
// plain HTTP. It keeps all keys that it gets.
type tlsEngine struct {
	URL string

	mu   sync.Mutex
	got  []string
	asks atomic.Int64 // requests
}

func (e *tlsEngine) keys() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got)
}

func startTLSEngine(t *testing.T, pair *tls.Certificate) *tlsEngine {
	t.Helper()
	e := &tlsEngine{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asks.Add(1)
		key := r.Header.Get("X-Engine-Key")
		if key != "" {
			e.mu.Lock()
			e.got = append(e.got, key)
			e.mu.Unlock()
		}
		switch {
		case r.URL.Path == "/health":
			says(200, `{"status":"ok"}`)(w, r)
		case key != testKey:
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
	if pair == nil {
		srv.Start()
		e.URL = strings.Replace(srv.URL, "http://", "https://", 1)
	} else {
		srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*pair}}
		srv.StartTLS()
		e.URL = srv.URL
	}
	t.Cleanup(srv.Close)
	return e
}

const ownJob, otherJob = "engine-own", "engine-other"

// TestStrangersGetNoKey: whoever listens at an engine's address without the engine's own
// certificate gets no request and no key, and is told as such, whatever it responds.
func TestStrangersGetNoKey(t *testing.T) {
	t.Parallel()
	own, foreign := newPKI(t), newPKI(t)
	name := engine.ServerName(ownJob)
	for what, tc := range map[string]struct {
		cert *tls.Certificate
		says string // "": it is the engine
	}{
		"the engine":          {new(own.pair(time.Hour, name, "127.0.0.1")), ""},
		"another engine":      {new(own.pair(time.Hour, engine.ServerName(otherJob), "127.0.0.1")), "not that of " + name + ": it has another name"},
		"an address only":     {new(own.pair(time.Hour, "127.0.0.1")), name},
		"a foreign authority": {new(foreign.pair(time.Hour, name, "127.0.0.1")), "unknown authority"},
		"plain HTTP":          {nil, "plain HTTP"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			e := startTLSEngine(t, tc.cert)
			p := NewProber(20*time.Second, own.trusted)
			by := proves(testKey)
			by.JobID = ownJob
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			booted := NewBoots(p).AwaitUsable(ctx, e.URL, by, nil)
			healthy := p.Of(ownJob).Health(ctx, e.URL)
			said, asked := (&Rotation{JobID: ownJob, Path: "/proof", Old: secrets.NewEngineKey(), New: testKey}).Ask(ctx, p, e.URL)
			if !p.Reaches(ctx, e.URL, 20*time.Second) {
				t.Error("it is not reached")
			}
			if want := what == "a foreign authority"; Unproven(healthy) != want {
				t.Errorf("that it only cannot be verified is %t: %v", !want, healthy)
			}
			if tc.says == "" {
				if booted != nil || healthy != nil || said != "" || asked != nil || !slices.Contains(e.keys(), testKey) {
					t.Errorf("boot %v, health %v, rotation %q %v", booted, healthy, said, asked)
				}
				return
			}
			if !p.Of(ownJob).KeepsAnswering(ctx, e.URL, 20*time.Second) {
				t.Error("it counts as a process that does not respond")
			}
			var breach *Breach
			for call, err := range map[string]error{"boot": booted, "health": healthy} {
				if !errors.As(err, &breach) || !breach.Certificate || !strings.Contains(breach.Said, tc.says) {
					t.Errorf("%s: %v, want that it is a stranger, with %q", call, err, tc.says)
				}
			}
			if strings.Contains(said, otherJob) {
				t.Errorf("the caller is told the name of another engine: %q", said)
			}
			if asked != nil || !strings.Contains(said, tc.says) {
				t.Errorf("rotation: %q, %v, want %q", said, asked, tc.says)
			}
			if keys := e.keys(); len(keys) > 0 || e.asks.Load() > 0 {
				t.Errorf("it got %d requests and %d keys", e.asks.Load(), len(keys))
			}
		})
	}
}

// TestNothingUnverified: without an authority, or without the name of an engine, nothing is
// sent over TLS.
func TestNothingUnverified(t *testing.T) {
	own := newPKI(t)
	e := startTLSEngine(t, new(own.pair(time.Hour, "127.0.0.1")))
	for what, p := range map[string]*Prober{
		"no authority":  NewProber(20*time.Second, nil).Of(ownJob),
		"no pool":       NewProber(20*time.Second, func() *x509.CertPool { return nil }).Of(ownJob),
		"of no engine":  NewProber(20*time.Second, own.trusted),
		"its own talks": func() *Prober { one, end := NewProber(20*time.Second, own.trusted).Talk(); t.Cleanup(end); return one }(),
	} {
		if err := p.Health(t.Context(), e.URL); err == nil || e.asks.Load() > 0 {
			t.Errorf("%s: %v, and it got %d requests", what, err, e.asks.Load())
		}
		if !p.KeepsAnswering(t.Context(), e.URL, time.Second) {
			t.Errorf("%s: it counts as frozen, although it was not asked", what)
		}
	}
	replaced := newPKI(t)
	now := own.trusted
	p := NewProber(20*time.Second, func() *x509.CertPool { return now() })
	next := startTLSEngine(t, new(replaced.pair(time.Hour, engine.ServerName(ownJob))))
	if err := p.Of(ownJob).Health(t.Context(), next.URL); err == nil {
		t.Error("a certificate of an unknown authority is accepted")
	}
	now = replaced.trusted
	if err := p.Of(ownJob).Health(t.Context(), next.URL); err != nil {
		t.Errorf("the authority was replaced: %v", err)
	}
}

// TestSilentHandshake: a process that accepts a connection and no handshake is reached; only
// who accepts no connection is not.
func TestSilentHandshake(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	own := newPKI(t)
	p := NewProber(20*time.Second, own.trusted)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var unreached *Unreached
	if err := p.Of(ownJob).Health(ctx, "https://"+l.Addr().String()); err == nil || errors.As(err, &unreached) {
		t.Errorf("it accepts connections: %v", err)
	}
	_ = l.Close()
	if err := p.Of(ownJob).Health(t.Context(), "https://"+l.Addr().String()); !errors.As(err, &unreached) {
		t.Errorf("it accepts none: %v", err)
	}
}
