package server

import (
	"net/http"

	"github.com/septemberai/orch/scheduler/reconcile"
)

// actionAnswer is one action of a reconcile pass, or of a recovery of the registry.
type actionAnswer struct {
	Subject   string        `json:"subject"`
	EngineID  string        `json:"engine_id"`
	ProductID string        `json:"product_id,omitempty"`
	UserID    string        `json:"user_id,omitempty"`
	Action    reconcile.Act `json:"action"`
	Why       string        `json:"why"`
}

func (s *Server) planReconcile(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	plan, err := s.scheduler.PlanReconcile(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Actions    []actionAnswer `json:"actions"`
		Incomplete []string       `json:"incomplete"`
	}{showActions(plan.Actions), append([]string{}, plan.Incomplete...)})
	return nil
}

func showActions(actions []*reconcile.Action) []actionAnswer {
	shown := make([]actionAnswer, 0, len(actions))
	for _, a := range actions {
		shown = append(shown, actionAnswer{a.Subject, a.EngineID, a.ProductID, a.UserID, a.Act, a.Why})
	}
	return shown
}

func (s *Server) requestReconcile(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	if err := s.scheduler.RequestReconcile(r.Context()); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"requested"})
	return nil
}
