package server

import (
	"context"
	"net/http"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/adminkeys"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// SetAdminKeys replaces the admin keys, from the next request onwards.
func (s *Server) SetAdminKeys(keys adminkeys.Set) { s.adminKeys.Store(&keys) }

type adminKeyKey struct{}

// withAdmin adds the admin key of a request, if it has a valid one, to its context, and the
// key's name to what the request causes and to its line in the log.
func (s *Server) withAdmin(ctx context.Context, r *http.Request) context.Context {
	secret := r.Header.Get("X-Admin-Key")
	if secret == "" {
		return ctx
	}
	key, valid := s.adminKeys.Load().Find(secret)
	if !valid {
		return ctx
	}
	if res, ok := ctx.Value(responseKey{}).(*response); ok {
		res.admin = key.Name
	}
	return operation.WithActor(context.WithValue(ctx, adminKeyKey{}, key), key.Actor())
}

// admin returns an error unless the request carries an admin key whose role allows it.
func (s *Server) admin(r *http.Request) error {
	key, valid := r.Context().Value(adminKeyKey{}).(adminkeys.Key)
	switch {
	case !valid:
		return &engine.Error{Code: engine.InvalidAdminKey, Message: "the X-Admin-Key header does not contain an admin key"}
	case key.Role != adminkeys.Admin && r.Method != http.MethodGet: // HEAD is routed as GET
		return &engine.Error{Code: engine.AdminKeyReadOnly, Message: "this admin key may only read: its role is " + string(key.Role)}
	}
	return nil
}

func (s *Server) registerProduct(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body registerBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	if err := engine.CheckDisplayName(body.DisplayName); err != nil {
		return invalid("%s", err)
	}
	p, key, err := s.scheduler.RegisterProduct(r.Context(), body.Slug, body.DisplayName, body.Policy)
	if err != nil {
		return err
	}
	secret(w)
	writeJSON(w, http.StatusOK, struct {
		ProductID      string `json:"product_id"`
		Slug           string `json:"slug"`
		PlatformAPIKey string `json:"platform_api_key"`
	}{p.ProductID, p.Slug, key})
	return nil
}

// productAnswer is a product as an admin sees it, without keys.
type productAnswer struct {
	ProductID   string        `json:"product_id"`
	Slug        string        `json:"slug"`
	DisplayName string        `json:"display_name"`
	Policy      engine.Policy `json:"policy"`
	CreatedAt   string        `json:"created_at"`
	Engines     int           `json:"engines"`
}

func showProduct(t registry.Tenant) productAnswer {
	return productAnswer{t.ProductID, t.Slug, t.DisplayName, t.Policy, timestamp(t.CreatedAt), t.Engines}
}

func (s *Server) listProducts(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	all, unreadable, err := s.scheduler.Products(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Products []productAnswer `json:"products"`
		Total    int             `json:"total"`
		// Unreadable lists the product_ids whose record cannot be read; Products does not
		// contain them.
		Unreadable []string `json:"unreadable"`
	}{make([]productAnswer, 0, len(all)), len(all), make([]string, 0, len(unreadable))}
	for _, u := range unreadable {
		answer.Unreadable = append(answer.Unreadable, u.ProductID)
	}
	for _, t := range all {
		answer.Products = append(answer.Products, showProduct(t))
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Server) getProduct(w http.ResponseWriter, r *http.Request, id string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	t, err := s.scheduler.Product(r.Context(), id)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", policyTag(t.Policy))
	writeJSON(w, http.StatusOK, showProduct(t))
	return nil
}

func (s *Server) setPolicy(w http.ResponseWriter, r *http.Request, id string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body policyBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	if body.Policy == nil {
		return invalid("policy must be an object; {} means no limits")
	}
	policy, err := s.scheduler.SetPolicy(r.Context(), id, *body.Policy, ifMatch(r))
	if err != nil {
		return err
	}
	w.Header().Set("ETag", policyTag(policy))
	writeJSON(w, http.StatusOK, struct {
		Policy engine.Policy `json:"policy"`
	}{policy})
	return nil
}

// maxOverlap is how long, in seconds, the previous platform key may stay valid after a
// rotation (docs/api.md).
const maxOverlap = 86400

func (s *Server) rotatePlatformKey(w http.ResponseWriter, r *http.Request, id string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body rotatePlatformKeyBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	if n := body.OverlapSeconds; n < 0 || n > maxOverlap {
		return invalid("overlap_seconds must be from 0 to %d", maxOverlap)
	}
	key, err := s.scheduler.RotatePlatformKey(r.Context(), id, time.Duration(body.OverlapSeconds)*time.Second)
	if err != nil {
		return err
	}
	secret(w)
	writeJSON(w, http.StatusOK, struct {
		PlatformAPIKey string `json:"platform_api_key"`
	}{key})
	return nil
}

func (s *Server) deleteProduct(w http.ResponseWriter, r *http.Request, id string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &emptyBody{}); err != nil {
		return err
	}
	if err := s.scheduler.DeleteProduct(r.Context(), id); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"deleted"})
	return nil
}
