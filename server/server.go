// Package server is the REST API of the service: it decodes requests, authenticates
// callers, calls the scheduler, and encodes responses.
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

	"github.com/septemberai/orch/internal/adminkeys"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/traces"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
)

// Server serves the API on a listener that New opened.
type Server struct {
	scheduler *scheduler.Scheduler
	adminKeys atomic.Pointer[adminkeys.Set]
	log       hclog.Logger
	listener  *limited
	http      *http.Server
	longest   time.Duration // time limit of the longest operation
	outages   *outages
	observer  Observer     // nil: nobody
	access    hclog.Logger // nil: no line for each request
	inFlight  atomic.Int64
	refused   atomic.Int64 // callers without a right key whose body is waited for
	confined  bool         // the admin's calls are served by AdminHandler only
	draining  atomic.Bool  // Drain was called
	// requests and admits are the requests in progress (Limit).
	requests, admits chan struct{}
	noDocs           bool
	wrongKeys        *wrongKeys
	https            bool // net/http changes its own configuration, also for plain HTTP
}

// New opens addr, so that an address in use is reported here and not in a goroutine.
func New(addr string, keys adminkeys.Set, s *scheduler.Scheduler, log hclog.Logger) (*Server, error) {
	l, err := listen(addr)
	if err != nil {
		return nil, err
	}
	srv := &Server{
		scheduler: s, log: log, listener: limit(l, connectionsOf(descriptors()), log), longest: s.LongestOperation(),
		outages: newOutages(log, s.Health),
	}
	srv.wrongKeys = newWrongKeys(log, s.RecordWrongKeys)
	srv.SetAdminKeys(keys)
	srv.Limit(Edge{MaxRequests: mostRequests})
	// A response can take as long as the longest operation. A client that does not read its
	// response, or does not send its request, is disconnected. A re-key takes less time: it
	// starts engines for 20 s, and then waits for its last rotation.
	write := srv.longest + 15*time.Second
	srv.http = &http.Server{
		Handler:           srv.identify(srv.public(srv.routes())),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      write,
		IdleTimeout:       write + time.Minute,
		MaxHeaderBytes:    32 << 10,
		ConnState:         srv.listener.state,
		// OPTIONS * gets an ordinary response, with a request id.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     errorLog(log),
	}
	return srv, nil
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("%s is in use: end the process that listens there (ss -ltnp 'sport = :%s' names it), or set another address in ORCH_ADDR", addr, port)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s (ORCH_ADDR): %w", addr, err)
	}
	return l, nil
}

// Free returns an error if a server cannot listen on addr now.
func Free(addr string) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Limits returns the maximum number of connections, and how many file descriptors the
// process may have.
func (s *Server) Limits() (connections, files int) { return s.listener.most, descriptors() }

// Serve handles requests until Shutdown.
func (s *Server) Serve() error {
	if err := s.accept(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// Shutdown stops accepting connections, and waits for requests in progress until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.http.SetKeepAlivesEnabled(false)
	return s.http.Shutdown(ctx)
}

// Close closes all connections at once.
func (s *Server) Close() error {
	err := errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
	s.outages.close()
	s.wrongKeys.close()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// sane matches a request id that can be copied into headers, logs and rows.
var sane = regexp.MustCompile(`^[A-Za-z0-9._:/+=-]{1,128}$`)

// identify gives every request an id, and turns a handler's panic into an error response.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if id == "" || !sane.MatchString(id) {
			id = strings.ToLower(rand.Text())
		}
		w.Header().Set("X-Request-Id", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// The client can retry, so the request does not wait for an unavailable store.
		ctx, span := traces.StartRequest(r)
		res := &response{ResponseWriter: w, span: span, draining: &s.draining, crowded: s.listener.crowded}
		r = r.WithContext(context.WithValue(link.FailFast(operation.WithRequestID(ctx, id)), responseKey{}, res))
		defer s.begin(res, r)()
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // net/http closes the connection
			default:
				s.log.Error("handler panicked", "request_id", id, "panic", p, "stack", string(debug.Stack()))
				s.writeError(res, r, fmt.Errorf("panic: %v", p))
			}
		}()
		next.ServeHTTP(res, r)
	})
}

// readWithin is the time limit of a call that only reads. The slowest of them are lists
// from the audit log and the admin's /status: up to four successive calls to a store, each
// with a limit of 5 s.
const readWithin = 20 * time.Second

// limit returns a call's time limit: that of the longest operation if the call may wait for
// one. The plans get the same, because they read everything.
func (s *Server) limit(r *http.Request) time.Duration {
	if r.Method != http.MethodGet || r.URL.Path == "/reconcile" || r.URL.Path == "/registry/recover" {
		return s.longest
	}
	return min(readWithin, s.longest)
}

// serve runs one handler within its time limit.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, userID string, h handler) {
	ctx, cancel := context.WithTimeout(r.Context(), s.limit(r))
	defer cancel()
	r = r.WithContext(s.withAdmin(ctx, r))
	if err := h(w, r, userID); err != nil {
		s.writeError(w, r, err)
	}
}
