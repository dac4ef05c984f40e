package server

import "net/http"

// unreachableVolume is an unreachable volume as an admin sees it.
type unreachableVolume struct {
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

func (s *Server) listUnreachableVolumes(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	unreachable, err := s.scheduler.UnreachableVolumes(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		UnreachableVolumes []unreachableVolume `json:"unreachable_volumes"`
		Total              int                 `json:"total"`
	}{make([]unreachableVolume, 0, len(unreachable)), len(unreachable)}
	for _, g := range unreachable {
		answer.UnreachableVolumes = append(answer.UnreachableVolumes, unreachableVolume{
			g.EngineID, g.ProductID, g.UserID, g.NodeID, g.NodeName, g.Silent, g.VolumeID, g.VolumePath, optional(timestamp(g.Since)), g.Why,
		})
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Server) forgetVolume(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	if err := s.scheduler.ForgetVolume(r.Context(), engineID); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status   string `json:"status"`
		EngineID string `json:"engine_id"`
	}{"forgotten", engineID})
	return nil
}
