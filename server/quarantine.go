package server

import (
	"net/http"

	"github.com/septemberai/orch/engine"
)

// quarantinedAnswer is an engine whose owner only an admin can decide.
type quarantinedAnswer struct {
	EngineID  string   `json:"engine_id"`
	Since     *string  `json:"since"`
	Why       string   `json:"why"`
	What      []string `json:"what"`
	ProductID string   `json:"product_id"`
	UserID    string   `json:"user_id"`
	NodeID    string   `json:"node_id"`
}

func (s *Server) listQuarantine(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	list, err := s.scheduler.Quarantine(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Engines []quarantinedAnswer `json:"engines"`
		Total   int                 `json:"total"`
	}{make([]quarantinedAnswer, 0, len(list)), len(list)}
	for _, q := range list {
		answer.Engines = append(answer.Engines, quarantinedAnswer{
			q.EngineID, optional(timestamp(q.Since)), q.Why, append([]string{}, q.What...), q.ProductID, q.UserID, q.NodeID,
		})
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// adoptedAnswer is an adopted engine, without its key, which belongs to the product.
type adoptedAnswer struct {
	listedEngine
	ProductID string `json:"product_id"`
}

func (s *Server) adopt(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body adoptBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	productID, userID, err := body.owner()
	if err != nil {
		return err
	}
	e, err := s.scheduler.Adopt(r.Context(), engineID, productID, userID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, adoptedAnswer{s.showEngine(e), e.ProductID})
	return nil
}

// owner returns the owner that the admin named, or "" twice if the witnesses are to decide.
func (b *adoptBody) owner() (productID, userID string, err error) {
	switch {
	case b.ProductID == nil && b.UserID == nil:
		return "", "", nil
	case b.ProductID == nil || b.UserID == nil:
		return "", "", invalid("give both product_id and user_id, or neither")
	case *b.ProductID == "":
		return "", "", invalid("product_id is empty; leave out product_id and user_id to take the owner from the witnesses")
	}
	if err := engine.CheckUserID(*b.UserID); err != nil {
		return "", "", invalid("%v", err)
	}
	return *b.ProductID, *b.UserID, nil
}

func (s *Server) discard(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &emptyBody{}); err != nil {
		return err
	}
	if err := s.scheduler.Discard(r.Context(), engineID); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status   string `json:"status"`
		EngineID string `json:"engine_id"`
	}{"discarded", engineID})
	return nil
}
