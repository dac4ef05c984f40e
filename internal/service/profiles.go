package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// profiles serves Go's profiles of this process on a loopback listener (ORCH_PPROF_ADDR).
// They contain names and counts, but no keys.
type profiles struct {
	http     http.Server
	listener net.Listener
}

// listenProfiles opens the listener; it returns nil if there is no address.
func listenProfiles(ctx context.Context, addr string) (*profiles, error) {
	if addr == "" {
		return nil, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("ORCH_PPROF_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return &profiles{http: http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, listener: listener}, nil
}

// serve handles requests until close.
func (p *profiles) serve() {
	if p != nil {
		_ = p.http.Serve(p.listener) // the error is that it was closed
	}
}

func (p *profiles) close() error {
	if p == nil {
		return nil
	}
	err := p.http.Close()
	if lerr := p.listener.Close(); !errors.Is(lerr, net.ErrClosed) { // if serve was never called
		err = errors.Join(err, lerr)
	}
	return err
}
