package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
)

// Edge is what the server accepts.
type Edge struct {
	// MaxRequests is the maximum number of concurrent requests. Requests above it get
	// OVERLOADED at once. As many admits of running engines are served in addition. What
	// needs no store, and the checks of load balancers, is not counted.
	MaxRequests int
	// MaxConnections is the maximum number of open connections; 0: as many as the process
	// has file descriptors for. At it, new connections replace idle ones, or wait.
	MaxConnections int
	NoDocs         bool // /docs and /openapi.yaml do not exist
	// WrongKeys is how many calls with wrong keys a source may make per minute; 0: any
	// number. Above it, they get TOO_MANY_WRONG_KEYS. Calls with right keys are served.
	WrongKeys int
}

// mostRequests is the maximum number of concurrent requests of a server without Limit.
const mostRequests = 1500

// Limit sets what the server accepts. Call it before Serve.
func (s *Server) Limit(e Edge) {
	s.noDocs = e.NoDocs
	s.wrongKeys.limit(e.WrongKeys)
	if e.MaxConnections > 0 {
		s.listener.most = min(e.MaxConnections, connectionsOf(descriptors()))
	}
	s.requests, s.admits = make(chan struct{}, e.MaxRequests), make(chan struct{}, e.MaxRequests)
}

var errOverloaded = &engine.Error{Code: engine.Overloaded, Message: "this replica serves as many requests as it can; retry in a moment", RetryAfter: time.Second}

// onlyRunning marks the context of an admit above the limit of requests: it may not boot an
// engine, which takes long.
type onlyRunning struct{}

// counted makes a handler count as a request in progress.
func (s *Server) counted(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		select {
		case s.requests <- struct{}{}:
			defer func() { <-s.requests }()
			return h(w, r, id)
		default:
		}
		if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/engines/") || !strings.HasSuffix(r.URL.Path, "/admit") {
			return errOverloaded
		}
		select {
		case s.admits <- struct{}{}:
			defer func() { <-s.admits }()
			return h(w, r.WithContext(context.WithValue(r.Context(), onlyRunning{}, true)), id)
		default:
			return errOverloaded
		}
	}
}
