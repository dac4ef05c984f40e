package server

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/julienschmidt/httprouter"

	"github.com/septemberai/orch/scheduler"
)

// handler answers one request, or returns the error to answer with. The user_id
// of the path, decoded and checked, is in the call.
type handler func(w http.ResponseWriter, r *http.Request, userID string) error

// routes builds the router. This file alone knows which one it is.
//
// httprouter matches the decoded path, in which a %2F of a user_id would look
// like a separator: the escaped path is routed and the parameter unescaped.
// A static segment beside a wildcard clashes there, so POST /engines/provision
// and POST /engines/{user_id}/{action} are told apart here.
func (s *Server) routes() http.Handler {
	r := httprouter.New()
	r.RedirectTrailingSlash, r.RedirectFixedPath, r.HandleOPTIONS, r.HandleMethodNotAllowed = false, false, false, false
	plain := func(h handler) httprouter.Handle {
		return func(w http.ResponseWriter, req *http.Request, _ httprouter.Params) { s.serve(w, req, "", h) }
	}
	user := func(h handler) httprouter.Handle {
		return func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			id, err := url.PathUnescape(p.ByName("user_id"))
			if err != nil || id == "" {
				s.writeError(w, req, invalid("the user_id in the path is not validly percent-encoded"))
				return
			}
			s.serve(w, req, id, h)
		}
	}
	actions := map[string]handler{"start": s.start, "stop": s.stop, "rotate-key": s.rotateKey}
	// httprouter's own Allow names OPTIONS, which nothing takes, and POST for
	// every engine.
	refuse := func(w http.ResponseWriter, req *http.Request) {
		path := req.URL.Path
		noPost := isEngineAction(path) && actions[lastSegment(path)] == nil || isEngine(path) && lastSegment(path) != "provision"
		var allowed []string
		for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodPost} {
			if h, _, _ := r.Lookup(method, path); h != nil && (method != http.MethodPost || !noPost) {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) == 0 {
			s.notFound(w, req)
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		s.methodNotAllowed(w, req)
	}

	r.GET("/health", plain(s.health))
	r.GET("/live", plain(s.live))
	r.GET(readyPath, plain(s.ready))
	r.POST("/products/register", plain(s.registerProduct))
	r.GET("/engines/:user_id", user(s.getEngine))
	r.DELETE("/engines/:user_id", user(s.destroy))
	r.POST("/engines/:user_id", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
		if p.ByName("user_id") != "provision" {
			refuse(w, req)
			return
		}
		s.serve(w, req, "", s.provision)
	})
	r.POST("/engines/:user_id/:action", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
		h, known := actions[p.ByName("action")]
		if !known {
			refuse(w, req)
			return
		}
		user(h)(w, req, p)
	})
	r.NotFound = http.HandlerFunc(refuse)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		escaped := new(http.Request)
		*escaped = *req
		u := *req.URL
		u.Path, u.RawPath = req.URL.EscapedPath(), ""
		escaped.URL = &u
		r.ServeHTTP(w, escaped)
	})
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.writeError(w, r, &scheduler.Error{Code: scheduler.NotFound, Message: "there is no such endpoint"})
}

func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	s.writeError(w, r, &scheduler.Error{Code: scheduler.MethodNotAllowed, Message: "this endpoint does not take that method; see the Allow header"})
}
