package server

import (
	"net/http"

	"github.com/septemberai/orch/scheduler"
)

func (s *Server) providerKeys(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	p, err := s.scheduler.ProviderKeys(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showRollout(p))
	return nil
}

func (s *Server) applyProviderKeys(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	p, err := s.scheduler.ApplyProviderKeys(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showRollout(p))
	return nil
}

// rolloutAnswer is the progress of a rollout of provider keys.
type rolloutAnswer struct {
	Status        scheduler.RolloutStatus `json:"status"`
	TargetVersion int                     `json:"target_version"`
	Pending       int                     `json:"pending"`
	Restarted     int                     `json:"restarted"`
	Failed        int                     `json:"failed"`
}

func showRollout(p scheduler.RolloutProgress) rolloutAnswer {
	return rolloutAnswer{p.Status, p.TargetVersion, p.Pending, p.Restarted, p.Failed}
}
