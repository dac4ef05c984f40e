package server

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/julienschmidt/httprouter"

	"github.com/septemberai/orch/engine"
)

// handler responds to one request, or returns the error to respond with. id is the decoded
// user_id or product_id of the path, or "" if the path has none.
type handler func(w http.ResponseWriter, r *http.Request, id string) error

// routes builds the router. Only this file knows which library routes.
//
// httprouter matches the decoded path, in which a %2F in a user_id would count as a
// separator. Therefore the escaped path is routed, and the parameter unescaped afterwards.
// httprouter allows no static segment beside a wildcard, so this function distinguishes POST
// /engines/provision from POST /engines/{user_id}/{action}.
func (s *Server) routes() http.Handler {
	r := httprouter.New()
	r.RedirectTrailingSlash, r.RedirectFixedPath, r.HandleOPTIONS, r.HandleMethodNotAllowed = false, false, false, false
	plain := func(h handler) httprouter.Handle {
		return func(w http.ResponseWriter, req *http.Request, _ httprouter.Params) { s.serve(w, req, "", noUser(h)) }
	}
	item := func(h handler) httprouter.Handle {
		return func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			id, err := url.PathUnescape(p.ByName("id"))
			if err != nil || id == "" {
				s.writeError(w, req, invalid("the id in the path is not validly percent-encoded"))
				return
			}
			s.serve(w, req, id, h)
		}
	}
	other := func(h handler) httprouter.Handle { return item(noUser(h)) } // an item that is not a user
	collections := map[string]collection{
		"engines": {"provision", s.mayWait(s.provision), map[string]handler{
			"admit": s.mayWait(s.admit), "start": s.mayWait(s.start), "stop": s.mayWait(s.stop), "rotate-key": s.mayWait(s.rotateKey), "keep-awake": s.keepAwake,
		}},
		"products": {"register", noUser(s.registerProduct), map[string]handler{"rotate-platform-key": noUser(s.rotatePlatformKey)}},
	}
	// httprouter's own Allow header would name OPTIONS, which no endpoint accepts, and POST
	// for every item.
	refuse := func(w http.ResponseWriter, req *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodPost, http.MethodPut} {
			if h, _, _ := r.Lookup(method, req.URL.Path); h != nil && (method != http.MethodPost || takesPost(collections, req.URL.Path)) {
				allowed = append(allowed, method)
				if method == http.MethodGet {
					allowed = append(allowed, http.MethodHead)
				}
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
	r.GET("/openapi.yaml", plain(s.openAPI))
	r.GET("/docs", plain(s.docsPage))
	r.GET("/status", plain(s.fleetStatus))
	r.GET("/metrics", plain(s.metrics))
	r.GET("/audit", plain(s.auditLog))
	r.GET("/engines", plain(s.listEngines))
	r.GET("/engines/:id", item(s.getEngine))
	r.DELETE("/engines/:id", item(s.mayWait(s.destroy)))
	r.GET("/products", plain(s.listProducts))
	r.GET("/products/:id", other(s.getProduct))
	r.DELETE("/products/:id", other(s.deleteProduct))
	r.PUT("/products/:id/policy", other(s.setPolicy))
	r.GET("/reconcile", plain(s.planReconcile))
	r.POST("/reconcile", plain(s.requestReconcile))
	r.GET("/unreachable-volumes", plain(s.listUnreachableVolumes))
	r.DELETE("/unreachable-volumes/:id", other(s.forgetVolume))
	r.GET("/provider-keys", plain(s.providerKeys))
	r.POST("/provider-keys/apply", plain(s.applyProviderKeys))
	r.GET("/registry", plain(s.registryStatus))
	r.GET("/registry/recover", plain(s.planRecovery))
	r.POST("/registry/recover", plain(s.requestRecovery))
	r.POST("/registry/rekey", plain(s.rekey))
	r.POST("/nodes/:id/adopt", other(s.adoptNode))
	r.GET("/quarantine", plain(s.listQuarantine))
	r.POST("/quarantine/:id/adopt", other(s.adopt))
	r.DELETE("/quarantine/:id", other(s.discard))
	for name, c := range collections {
		r.POST("/"+name+"/:id", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			if p.ByName("id") != c.create {
				refuse(w, req)
				return
			}
			s.serve(w, req, "", c.creator)
		})
		r.POST("/"+name+"/:id/:action", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			h, known := c.actions[p.ByName("action")]
			if !known {
				refuse(w, req)
				return
			}
			item(h)(w, req, p)
		})
	}
	r.NotFound = http.HandlerFunc(refuse)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if path := req.URL.EscapedPath(); path != req.URL.Path {
			u := *req.URL
			u.Path, u.RawPath = path, ""
			escaped := *req
			escaped.URL, req = &u, &escaped
		}
		if req.Method == http.MethodHead { // net/http omits the body
			get := *req
			get.Method, req = http.MethodGet, &get
		}
		r.ServeHTTP(w, req)
	})
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.writeError(w, r, &engine.Error{Code: engine.NotFound, Message: "there is no such endpoint"})
}

func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	s.writeError(w, r, &engine.Error{Code: engine.MethodNotAllowed, Message: "this endpoint does not accept that method; see the Allow header"})
}

// collection is what POST does below /engines and /products: one name that creates an item,
// and the actions on an item.
type collection struct {
	create  string
	creator handler
	actions map[string]handler
}

// takesPost reports whether a path that httprouter has a POST route for is an endpoint.
func takesPost(all map[string]collection, path string) bool {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	c, known := all[segments[0]]
	if !known {
		return true
	}
	switch len(segments) {
	case 2:
		return segments[1] == c.create
	case 3:
		return c.actions[segments[2]] != nil
	}
	return true
}
