package server

import (
	"net/http"
	"strings"
)

// adminPaths are the first segments of the paths that only the admin calls.
var adminPaths = map[string]bool{
	"products": true, "reconcile": true, "unreachable-volumes": true, "provider-keys": true, "registry": true, "nodes": true, "quarantine": true, "stored-engines": true,
}

// probePaths show the health of a replica, on every listener.
var probePaths = map[string]bool{"/health": true, "/live": true, readyPath: true}

// ofAdmin reports whether a call is the admin's: nobody else calls its path, or it carries an
// admin key, as a call of GET /engines, GET /status and GET /audit can.
func ofAdmin(r *http.Request) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	byID := r.Method != http.MethodPost && isByID(r.URL.EscapedPath()) // POST has the actions of the user "by-id"
	return adminPaths[first] || byID || len(r.Header.Values("X-Admin-Key")) > 0
}

// ConfineAdmin says whether the admin's calls are unknown routes on the server's own
// listener. Call it before Serve.
func (s *Server) ConfineAdmin(only bool) { s.confined = only }

// public serves the calls of the server's own listener.
func (s *Server) public(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.confined && ofAdmin(r) {
			s.notFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// AdminHandler returns the handler of another listener, for the admin: it serves the admin's
// calls and the probes, whether or not the admin is confined to it. Everything else is an
// unknown route.
func (s *Server) AdminHandler() http.Handler {
	routes := s.routes()
	return s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ofAdmin(r) && !probePaths[r.URL.Path] {
			s.notFound(w, r)
			return
		}
		routes.ServeHTTP(w, r)
	}))
}
