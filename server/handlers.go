package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
)

// listedEngine is an engine in a list.
type listedEngine struct {
	EngineID      string       `json:"engine_id"`
	UserID        string       `json:"user_id"`
	Status        engine.State `json:"status"`
	URL           *string      `json:"url"`
	EngineVersion string       `json:"engine_version"`
	ImageDigest   string       `json:"image_digest,omitempty"`
	CreatedAt     string       `json:"created_at"`
	LastHealthAt  *string      `json:"last_health_at"`
	Reason        string       `json:"reason,omitempty"`
}

// engineAnswer is an engine with its API key.
type engineAnswer struct {
	listedEngine
	APIKey *string `json:"api_key"`
}

func (s *Server) showEngine(e *engine.Row) listedEngine {
	url := e.URL
	if e.State == engine.Failed { // the row may keep its URL for an operation
		url = ""
	}
	return listedEngine{
		EngineID: e.EngineID, UserID: e.UserID, Status: e.State, URL: optional(url), EngineVersion: e.Image, ImageDigest: s.scheduler.Pinned(e),
		CreatedAt: timestamp(e.CreatedAt), LastHealthAt: optional(timestamp(s.scheduler.LastHealth(e))), Reason: e.Reason,
	}
}

// optional returns nil for an empty string, so that JSON shows null.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// caller authenticates a product's call about one user.
func (s *Server) caller(r *http.Request, userID string) (*scheduler.Caller, error) {
	return s.callerBy(s.scheduler.Authenticate, r, userID)
}

// callerBy is like caller, but with the given authentication function. If it returns an
// error, Leave has been called on the caller.
func (s *Server) callerBy(authenticate func(ctx context.Context, platformKey, userID string) (*scheduler.Caller, error), r *http.Request, userID string) (*scheduler.Caller, error) {
	bad := engine.CheckUserID(userID)
	if errors.Is(bad, engine.ErrDotSegment) && (r.Method == http.MethodGet || r.Method == http.MethodDelete) && s.admin(r) == nil {
		bad = nil // engines with such an id were created before it was refused; the admin can read and remove them
	}
	if bad == nil {
		bad = sameUser(r, userID)
	}
	if bad != nil {
		userID = "" // no row is read under an invalid user_id
	}
	c, err := authenticate(r.Context(), r.Header.Get("X-Platform-Key"), userID)
	if err == nil {
		knownAs(r, c.Product.Slug)
	}
	if err == nil && bad != nil {
		c.Leave()
		if err = bad; !errors.As(bad, new(*engine.Error)) {
			err = invalid("%v", bad)
		}
	}
	return c, err
}

func (s *Server) provision(w http.ResponseWriter, r *http.Request, _ string) error {
	// The user is in the body. A caller without a key must not hold a request while it sends
	// one.
	if err := s.scheduler.CheckPlatformKey(r.Context(), r.Header.Get("X-Platform-Key")); err != nil {
		return err
	}
	var body provisionBody
	if err := decode(w, r, &body); err != nil {
		// A caller without a valid key must not learn whether its body is valid.
		if _, kerr := s.scheduler.Authenticate(r.Context(), r.Header.Get("X-Platform-Key"), ""); kerr != nil {
			return kerr
		}
		return err
	}
	c, err := s.caller(r, body.UserID)
	if err != nil {
		return err
	}
	image := ""
	if body.EngineVersion != nil {
		if image = *body.EngineVersion; image == "" {
			return invalid("engine_version is empty; leave it out for the default")
		}
	}
	idempotency, err := idempotencyKey(r)
	if err != nil {
		return err
	}
	e, key, err := s.scheduler.Provision(r.Context(), c, scheduler.ProvisionOptions{Image: image, IdempotencyKey: idempotency})
	if err != nil {
		return err
	}
	writeProvisioned(w, e, key)
	return nil
}

func (s *Server) getEngine(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.caller(r, userID)
	if err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	e, key, err := s.scheduler.Show(r.Context(), c)
	if err != nil {
		return err
	}
	secret(w)
	writeJSON(w, http.StatusOK, struct {
		engineAnswer
		progress
	}{engineAnswer{s.showEngine(e), optional(key)}, showProgress(e)})
	return nil
}

func (s *Server) start(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.bodyless(w, r, userID)
	if err != nil {
		return err
	}
	e, err := s.scheduler.Start(r.Context(), c)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status engine.State `json:"status"`
		URL    string       `json:"url"`
	}{e.State, e.URL})
	return nil
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.bodyless(w, r, userID)
	if err != nil {
		return err
	}
	e, err := s.scheduler.Stop(r.Context(), c)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status engine.State `json:"status"`
	}{e.State})
	return nil
}

func (s *Server) rotateKey(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.bodyless(w, r, userID)
	if err != nil {
		return err
	}
	key, err := s.scheduler.RotateKey(r.Context(), c)
	if err != nil {
		return err
	}
	secret(w)
	writeJSON(w, http.StatusOK, struct {
		NewAPIKey string `json:"new_api_key"`
	}{key})
	return nil
}

func (s *Server) keepAwake(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.caller(r, userID)
	if err != nil {
		return err
	}
	var body struct {
		Seconds int `json:"seconds"`
	}
	if err := decode(w, r, &body); err != nil {
		return err
	}
	const longest = int(scheduler.MaxKeepAwake / time.Second)
	if body.Seconds < 1 || body.Seconds > longest {
		return invalid("seconds must be from 1 to %d", longest)
	}
	until, err := s.scheduler.KeepAwake(r.Context(), c, time.Duration(body.Seconds)*time.Second)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Until string `json:"keep_awake_until"`
	}{timestamp(until)})
	return nil
}

func (s *Server) destroy(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.bodyless(w, r, userID)
	if err != nil {
		return err
	}
	id, err := s.scheduler.Destroy(r.Context(), c)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status   string `json:"status"`
		EngineID string `json:"engine_id"`
	}{"destroyed", id})
	return nil
}

// bodyless authenticates a change whose body must be empty or {}.
func (s *Server) bodyless(w http.ResponseWriter, r *http.Request, userID string) (*scheduler.Caller, error) {
	return s.change(w, r, userID, &emptyBody{})
}

// change authenticates a change, and then reads its body.
func (s *Server) change(w http.ResponseWriter, r *http.Request, userID string, body any) (*scheduler.Caller, error) {
	c, err := s.caller(r, userID)
	if err != nil {
		return nil, err
	}
	if c.IdempotencyKey, err = idempotencyKey(r); err != nil {
		return nil, err
	}
	return c, decode(w, r, body)
}

// secret marks a response that contains a key, so that no cache stores it.
func secret(w http.ResponseWriter) { w.Header().Set("Cache-Control", "no-store") }

func (s *Server) health(w http.ResponseWriter, r *http.Request, _ string) error {
	body := struct {
		Status     string                            `json:"status"`
		Role       string                            `json:"role"`
		Registry   registry.RegistryState            `json:"registry"`
		Subsystems map[string]scheduler.BackendState `json:"subsystems"`
	}{"ok", s.scheduler.Role(), s.scheduler.RegistryState(), s.scheduler.Health(r.Context())}
	code := http.StatusOK
	for _, state := range body.Subsystems {
		if state != scheduler.BackendOK {
			body.Status, code = "degraded", http.StatusServiceUnavailable
			w.Header().Set("Retry-After", "2")
		}
	}
	writeJSON(w, code, body)
	return nil
}

func (s *Server) live(w http.ResponseWriter, _ *http.Request, _ string) error {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}

// readyPath is requested continuously by load balancers.
const readyPath = "/ready"

func (s *Server) ready(w http.ResponseWriter, r *http.Request, _ string) error {
	if s.draining.Load() {
		return errDraining
	}
	if err := s.scheduler.Ready(); err != nil {
		return err
	}
	if err := s.scheduler.Reachable(r.Context()); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}
