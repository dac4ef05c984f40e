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
	free := func(h handler) httprouter.Handle { // does not count as a request in progress
		return func(w http.ResponseWriter, req *http.Request, _ httprouter.Params) { s.serve(w, req, "", noUser(h)) }
	}
	plain := func(h handler) httprouter.Handle { return free(s.counted(h)) }
	item := func(h handler) httprouter.Handle {
		return func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			id, err := url.PathUnescape(p.ByName("id"))
			if err != nil || id == "" {
				s.writeError(w, req, invalid("the id in the path is not validly percent-encoded"))
				return
			}
			s.serve(w, req, id, s.counted(h))
		}
	}
	other := func(h handler) httprouter.Handle { return item(noUser(h)) } // an item that is not a user
	collections := map[string]collection{
		"engines": {"provision", s.mayWait(s.provision), map[string]handler{
			"admit": s.mayWait(s.admit), "start": s.mayWait(s.start), "stop": s.mayWait(s.stop), "rotate-key": s.mayWait(s.rotateKey), "keep-awake": s.keepAwake,
			"snapshots": s.mayTakeLong(s.takeSnapshot), "restore": s.mayTakeLong(s.restore), "fork": s.mayTakeLong(s.fork),
		}},
		"products": {"register", noUser(s.registerProduct), map[string]handler{"rotate-platform-key": noUser(s.rotatePlatformKey)}},
	}
	// httprouter's own Allow header would name OPTIONS, which no endpoint accepts, and POST
	// for every item.
	refuse := func(w http.ResponseWriter, req *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodPost, http.MethodPut} {
			if h, _, _ := r.Lookup(method, req.URL.Path); h != nil && (method != http.MethodPost || takesPost(collections, req.URL.Path)) && (method != http.MethodGet || takesGet(req.URL.Path)) {
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

	add := func(method, path string, h httprouter.Handle) {
		template := templateOf(path)
		r.Handle(method, path, func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			setRoute(w, template)
			h(w, req, p)
		})
	}
	add(http.MethodGet, "/health", free(s.health))
	add(http.MethodGet, "/live", free(s.live))
	add(http.MethodGet, readyPath, free(s.ready))
	add(http.MethodGet, "/openapi.yaml", free(s.openAPI))
	add(http.MethodGet, "/docs", free(s.docsPage))
	add(http.MethodGet, "/status", plain(s.fleetStatus))
	add(http.MethodGet, "/metrics", plain(s.metrics))
	add(http.MethodGet, "/audit", plain(s.auditLog))
	add(http.MethodGet, "/engines", plain(s.listEngines))
	add(http.MethodGet, "/engines/:id", item(s.getEngine))
	add(http.MethodDelete, "/engines/:id", item(s.mayWait(s.destroy)))
	add(http.MethodDelete, "/engines/:id/snapshots/:snapshot", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
		snapshot, err := url.PathUnescape(p.ByName("snapshot"))
		if err != nil || snapshot == "" {
			s.writeError(w, req, invalid("the snapshot_id in the path is not validly percent-encoded"))
			return
		}
		item(s.deleteSnapshot(snapshot))(w, req, p)
	})
	add(http.MethodGet, "/products", plain(s.listProducts))
	add(http.MethodGet, "/products/:id", other(s.getProduct))
	add(http.MethodDelete, "/products/:id", other(s.deleteProduct))
	add(http.MethodPut, "/products/:id/policy", other(s.setPolicy))
	add(http.MethodGet, "/reconcile", plain(s.planReconcile))
	add(http.MethodPost, "/reconcile", plain(s.requestReconcile))
	add(http.MethodGet, "/unreachable-volumes", plain(s.listUnreachableVolumes))
	add(http.MethodDelete, "/unreachable-volumes/:id", other(s.forgetVolume))
	add(http.MethodGet, "/provider-keys", plain(s.providerKeys))
	add(http.MethodPost, "/provider-keys/apply", plain(s.applyProviderKeys))
	add(http.MethodGet, "/registry", plain(s.registryStatus))
	add(http.MethodGet, "/registry/recover", plain(s.planRecovery))
	add(http.MethodPost, "/registry/recover", plain(s.requestRecovery))
	add(http.MethodPost, "/registry/rekey", plain(s.rekey))
	add(http.MethodPost, "/nodes/:id/adopt", other(s.adoptNode))
	add(http.MethodPost, "/nodes/:id/evacuate", other(s.evacuateNode))
	add(http.MethodGet, "/nodes/:id/evacuate", other(s.getEvacuation))
	add(http.MethodDelete, "/nodes/:id/evacuate", other(s.cancelEvacuation))
	add(http.MethodGet, "/stored-engines", plain(s.listStoredEngines))
	add(http.MethodPost, "/stored-engines/:id/import", other(s.mayTakeLong(s.importEngine)))
	add(http.MethodGet, "/quarantine", plain(s.listQuarantine))
	add(http.MethodPost, "/quarantine/:id/adopt", other(s.adopt))
	add(http.MethodDelete, "/quarantine/:id", other(s.discard))
	r.GET("/engines/:id/:engine", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
		if !takesGet(req.URL.Path) {
			refuse(w, req)
			return
		}
		if isSnapshots(req.URL.Path) {
			setRoute(w, templateOf("/engines/:id/snapshots"))
			item(s.listSnapshots)(w, req, p)
			return
		}
		setRoute(w, byIDPath+"{engine_id}")
		other(s.getEngineByID)(w, req, httprouter.Params{{Key: "id", Value: p.ByName("engine")}})
	})
	add(http.MethodGet, "/nodes", plain(s.listNodes))
	for name, c := range collections {
		r.POST("/"+name+"/:id", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			if p.ByName("id") != c.create {
				refuse(w, req)
				return
			}
			setRoute(w, "/"+name+"/"+c.create)
			s.serve(w, req, "", s.counted(c.creator))
		})
		r.POST("/"+name+"/:id/:action", func(w http.ResponseWriter, req *http.Request, p httprouter.Params) {
			action := p.ByName("action")
			h, known := c.actions[action]
			if !known {
				refuse(w, req)
				return
			}
			setRoute(w, templateOf("/"+name+"/:id/"+action))
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

var errNoEndpoint = &engine.Error{Code: engine.NotFound, Message: "there is no such endpoint"}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) { s.writeError(w, r, errNoEndpoint) }

func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	s.writeError(w, r, &engine.Error{Code: engine.MethodNotAllowed, Message: "this endpoint does not accept that method; see the Allow header"})
}

// parameters are the names of the parameter :id, by the first segment of the path.
var parameters = map[string]string{
	"engines": "{user_id}", "products": "{product_id}", "unreachable-volumes": "{engine_id}", "quarantine": "{engine_id}", "nodes": "{node_id}", "stored-engines": "{engine_id}",
}

// templateOf returns the template of a route's path as it is in docs/openapi.yaml.
func templateOf(path string) string {
	first, _, _ := strings.Cut(path[1:], "/")
	return strings.NewReplacer(":id", parameters[first], ":snapshot", "{snapshot_id}").Replace(path)
}

// byIDPath begins the path of an engine by its engine_id, for the admin.
const byIDPath = "/engines/by-id/"

// isByID reports whether an escaped path is that of an engine by its engine_id. A user_id
// that begins with by-id/ has an escaped slash, and "by-id" is a user_id like any other: the
// path /engines/by-id/snapshots is that of its snapshots, because no engine_id is so short.
func isByID(escaped string) bool {
	id, found := strings.CutPrefix(escaped, byIDPath)
	return found && id != "" && !strings.Contains(id, "/") && !isSnapshots(escaped)
}

// isSnapshots reports whether an escaped path below /engines is that of an engine's
// snapshots.
func isSnapshots(escaped string) bool {
	return strings.Count(escaped, "/") == 3 && strings.HasSuffix(escaped, "/snapshots")
}

// takesGet reports whether an escaped path that httprouter has a GET route for is an
// endpoint.
func takesGet(path string) bool {
	return strings.Count(path, "/") < 3 || !strings.HasPrefix(path, "/engines/") || isByID(path) || isSnapshots(path)
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
