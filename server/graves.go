package server

import "net/http"

// graveAnswer is a grave as the admin sees it.
type graveAnswer struct {
	EngineID  string  `json:"engine_id"`
	ProductID string  `json:"product_id"`
	UserID    string  `json:"user_id"`
	NodeID    string  `json:"node_id"`
	NodeName  string  `json:"node_name"`
	Silent    bool    `json:"node_silent"`
	VolumeID  string  `json:"volume_id"`
	Path      string  `json:"volume_path"`
	Since     *string `json:"since"`
	Why       string  `json:"why"`
}

func (s *Server) listGraves(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	graves, err := s.scheduler.Graves(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Graves []graveAnswer `json:"graves"`
		Total  int           `json:"total"`
	}{make([]graveAnswer, 0, len(graves)), len(graves)}
	for _, g := range graves {
		answer.Graves = append(answer.Graves, graveAnswer{
			g.EngineID, g.ProductID, g.UserID, g.NodeID, g.NodeName, g.Silent, g.VolumeID, g.VolumePath, optional(timestamp(g.Since)), g.Why,
		})
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Server) bury(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	if err := s.scheduler.Bury(r.Context(), engineID); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status   string `json:"status"`
		EngineID string `json:"engine_id"`
	}{"buried", engineID})
	return nil
}
