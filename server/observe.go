package server

import (
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Observer is told about every request.
type Observer interface {
	// Request is called after the response to a request. The method is one of HTTP's, or
	// "other". The route is the template of the route (docs/openapi.yaml), or "none" if no
	// route matched. The status is 499 if the caller disconnected before the response, and 0
	// if the connection was aborted without one.
	Request(method, route string, status int, took time.Duration)
}

// noRoute is the route of requests that no route matched.
const noRoute = "none"

// Observe sets who is told about every request. Call it before Serve.
func (s *Server) Observe(o Observer) { s.observer = o }

// LogRequests sets the log that gets a line at level info for each request. No line has a
// path, because a path has the id of a user. Call it before Serve.
func (s *Server) LogRequests(log hclog.Logger) { s.access = log }

// InFlight returns how many requests are in progress.
func (s *Server) InFlight() int { return int(s.inFlight.Load()) }

// Connections returns how many connections are open on the server's own listener, and the
// maximum.
func (s *Server) Connections() (open, most int) {
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	return s.listener.open, s.listener.most
}

// begin counts a request as in progress. The returned function ends that, and tells the
// observer and the log.
func (s *Server) begin(res *response, r *http.Request) (end func()) {
	began := time.Now()
	s.inFlight.Add(1)
	return func() {
		s.inFlight.Add(-1)
		took := time.Since(began)
		if s.access != nil && s.access.IsInfo() {
			s.access.Info("request", "method", methodOf(r), "route", res.routeName(), "status", res.final(), "ms", float64(took.Microseconds())/1000,
				"product", res.product, "admin", res.admin, "request_id", res.Header().Get("X-Request-Id"), "remote", r.RemoteAddr)
		}
		if res.span.Recording() {
			res.span.Name(methodOf(r) + " " + res.routeName())
			res.span.SetStatus(res.final())
			res.span.Set("http.request.method", methodOf(r), "http.route", res.routeName(), "orch.product", res.product, "orch.request_id", res.Header().Get("X-Request-Id"))
		}
		res.span.End()
		if s.observer != nil {
			s.observer.Request(methodOf(r), res.routeName(), res.final(), took)
		}
	}
}

// methodOf returns a request's method, which a caller chooses freely, as one of a few.
func methodOf(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return r.Method
	}
	return "other"
}

// routeName returns the route of the request for which w is the response.
func (w *response) routeName() string {
	if w.route == "" {
		return noRoute
	}
	return w.route
}

// final returns the status of the response.
func (w *response) final() int {
	if w.hungUp {
		return statusHungUp
	}
	return w.status
}
