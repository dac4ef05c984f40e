// Package ops serves operators: the metrics of the service in Prometheus's format, Go's
// profiles of the process, and the admin's calls, on a listener that products cannot reach.
package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// Listener is the operators' listener. A nil Listener serves nothing.
type Listener struct {
	http     http.Server
	listener net.Listener
}

// Listen opens an address. The error wraps syscall.EADDRINUSE if another process has it.
func Listen(ctx context.Context, addr string) (*Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return &Listener{listener: l}, nil
}

// Addr returns the address that the listener has, or nil.
func (l *Listener) Addr() net.Addr {
	if l == nil {
		return nil
	}
	return l.listener.Addr()
}

// Serve handles requests until Shutdown or Close. Requests that are neither for metrics nor
// for profiles go to admin. There is no limit for the time of a response, because a profile
// takes as long as its caller says.
func (l *Listener) Serve(metrics, admin http.Handler) {
	if l == nil {
		return
	}
	profiles := http.NewServeMux()
	profiles.HandleFunc("GET /debug/pprof/", pprof.Index) // pprof.Cmdline is left out
	profiles.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	l.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/metrics" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			metrics.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/debug/pprof/"):
			profiles.ServeHTTP(w, r)
		default:
			admin.ServeHTTP(w, r)
		}
	})
	l.http.ReadHeaderTimeout, l.http.ReadTimeout, l.http.IdleTimeout = 10*time.Second, 30*time.Second, 2*time.Minute
	l.http.MaxHeaderBytes = 32 << 10
	_ = l.http.Serve(l.listener) // the error is that it was closed
}

// Shutdown accepts no more connections, and waits until ctx ends for the requests in
// progress. Then it closes all connections.
func (l *Listener) Shutdown(ctx context.Context) error {
	if l == nil {
		return nil
	}
	if err := l.http.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(err, l.Close())
	}
	return l.Close()
}

// Close closes the listener and all connections at once.
func (l *Listener) Close() error {
	if l == nil {
		return nil
	}
	err := l.http.Close()
	if lerr := l.listener.Close(); !errors.Is(lerr, net.ErrClosed) { // if Serve was never called
		err = errors.Join(err, lerr)
	}
	return err
}
