// Package server is the REST API of the service: it decodes, authenticates,
// asks the scheduler, and encodes.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
)

// Server serves the API on a listener that New opened.
type Server struct {
	scheduler *scheduler.Scheduler
	adminKey  atomic.Pointer[string]
	log       hclog.Logger
	listener  *limited
	http      *http.Server
	docs      []byte        // the page of the API
	longest   time.Duration // a call's time limit
	outages   *outages
}

// New opens addr, so that a taken port is an error here and not in a goroutine.
func New(addr, adminKey string, s *scheduler.Scheduler, log hclog.Logger) (*Server, error) {
	page, err := renderedDocs()
	if err != nil {
		return nil, err
	}
	l, err := listen(addr)
	if err != nil {
		return nil, err
	}
	srv := &Server{
		scheduler: s, log: log, listener: limit(l, connectionsOf(descriptors()), log), docs: page, longest: s.LongestOperation(),
		outages: newOutages(log, s.Health),
	}
	srv.SetAdminKey(adminKey)
	// An answer can take as long as the longest operation; a client that does
	// not read it, or does not send its request, is let go. A re-key takes less: it
	// begins with engines for 20 s, and then waits for its last rotation.
	write := srv.longest + 15*time.Second
	srv.http = &http.Server{
		Handler:           srv.identify(srv.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      write,
		IdleTimeout:       write + time.Minute,
		MaxHeaderBytes:    32 << 10,
		ConnState:         srv.listener.state,
		// OPTIONS * is answered as any other request, with an id.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true}),
	}
	return srv, nil
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("%s is taken: end what listens there (ss -ltnp 'sport = :%s' names it), or choose another address with ORCH_ADDR", addr, port)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s (ORCH_ADDR): %w", addr, err)
	}
	return l, nil
}

// Free says whether a server could listen on addr, now.
func Free(addr string) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Limits are how many connections the server keeps at most, and how many file
// descriptors the process may have.
func (s *Server) Limits() (connections, files int) { return s.listener.most, descriptors() }

// Serve answers requests until Shutdown.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// Shutdown stops accepting, and waits for the requests in flight until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.http.SetKeepAlivesEnabled(false)
	return s.http.Shutdown(ctx)
}

// Close ends all connections at once.
func (s *Server) Close() error {
	err := errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
	s.outages.close()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// sane is a request id that may go into headers, logs and rows as it is.
var sane = regexp.MustCompile(`^[A-Za-z0-9._:/+=-]{1,128}$`)

// identify gives every request its id and catches what a handler did not.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if id == "" || !sane.MatchString(id) {
			id = strings.ToLower(rand.Text())
		}
		w.Header().Set("X-Request-Id", id)
		// Its client can make the call again: it waits for no store that is away.
		r = r.WithContext(link.FailFast(operation.WithRequestID(r.Context(), id)))
		res := &response{ResponseWriter: w}
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // net/http cuts the connection
			default:
				s.log.Error("handler panicked", "request_id", id, "panic", p, "stack", string(debug.Stack()))
				s.writeError(res, r, fmt.Errorf("panic: %v", p))
			}
		}()
		next.ServeHTTP(res, r)
	})
}

// readWithin is the time limit of a call that only reads. Of those, the lists from the
// audit log and the admin's /status take longest: up to four calls to a store, one
// after another, with up to 5 s each.
const readWithin = 20 * time.Second

// limit is a call's time limit; the longest operation's where it may wait for one. The
// plans read all that there is.
func (s *Server) limit(r *http.Request) time.Duration {
	if r.Method != http.MethodGet || r.URL.Path == "/reconcile" || r.URL.Path == "/registry/recover" {
		return s.longest
	}
	return min(readWithin, s.longest)
}

// serve runs one handler within its time limit.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, userID string, h handler) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), s.limit(r))
	defer cancel()
	r = r.WithContext(ctx)
	if err := h(w, r, userID); err != nil {
		s.writeError(w, r, err)
		return
	}
	if s.log.IsDebug() {
		s.log.Debug("request served", "request_id", operation.RequestID(r.Context()), "method", r.Method, "ms", time.Since(began).Milliseconds())
	}
}
