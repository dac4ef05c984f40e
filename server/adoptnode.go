package server

import (
	"cmp"
	"net/http"
)

// notAdoptedAnswer is an engine that was not changed, and the reason.
type notAdoptedAnswer struct {
	EngineID string `json:"engine_id"`
	Why      string `json:"why"`
}

// adoptNode gives engines their volumes back after their node, or Nomad's servers, lost
// their state.
func (s *Server) adoptNode(w http.ResponseWriter, r *http.Request, nodeID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body adoptNodeBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	done, err := s.scheduler.AdoptNode(r.Context(), cmp.Or(body.From, nodeID), nodeID, body.ProcessesEnded)
	if err != nil {
		return err
	}
	answer := struct {
		Adopted int                `json:"adopted"`
		Left    int                `json:"left"`
		Cleared int                `json:"cleared"`
		Failed  []notAdoptedAnswer `json:"failed"`
	}{done.Adopted, done.Left, done.Cleared, make([]notAdoptedAnswer, 0, len(done.Failed))}
	for _, f := range done.Failed {
		answer.Failed = append(answer.Failed, notAdoptedAnswer{f.EngineID, f.Why})
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}
