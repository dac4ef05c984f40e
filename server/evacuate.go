package server

import (
	"net/http"

	"github.com/septemberai/orch/scheduler"
)

// evacuationAnswer is the progress of an evacuation.
type evacuationAnswer struct {
	NodeID      string             `json:"node_id"`
	Status      string             `json:"status"`
	RequestedBy string             `json:"requested_by"`
	RequestedAt string             `json:"requested_at"`
	EndedAt     *string            `json:"ended_at"`
	Total       int                `json:"total"`
	Left        int                `json:"left"`
	Moving      int                `json:"moving"`
	Waits       string             `json:"waits"`
	Failed      []failedMoveAnswer `json:"failed"`
}

// failedMoveAnswer is an engine that could not be moved yet.
type failedMoveAnswer struct {
	EngineID  string `json:"engine_id"`
	ProductID string `json:"product_id"`
	UserID    string `json:"user_id"`
	Code      string `json:"code"`
	Message   string `json:"message"`
	At        string `json:"at"`
	Attempts  int    `json:"attempts"`
}

// The statuses of an evacuation that has no outcome yet.
const (
	evacuationMoving     = "moving"
	evacuationCancelling = "cancelling"
)

func showEvacuation(e *scheduler.Evacuation) *evacuationAnswer {
	a := &evacuationAnswer{
		NodeID: e.NodeID, Status: e.Outcome, RequestedBy: e.By, RequestedAt: timestamp(e.RequestedAt), EndedAt: optional(timestamp(e.EndedAt)),
		Total: e.Total, Left: e.Left, Moving: e.Moving, Waits: e.Waits, Failed: make([]failedMoveAnswer, 0, len(e.Failed)),
	}
	switch {
	case a.Status != "":
	case e.Cancelled:
		a.Status = evacuationCancelling
	default:
		a.Status = evacuationMoving
	}
	for _, f := range e.Failed {
		a.Failed = append(a.Failed, failedMoveAnswer{f.EngineID, f.ProductID, f.UserID, f.Code, f.Message, timestamp(f.At), f.Attempts})
	}
	return a
}

func (s *Server) evacuateNode(w http.ResponseWriter, r *http.Request, nodeID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	e, err := s.scheduler.Evacuate(r.Context(), nodeID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showEvacuation(e))
	return nil
}

func (s *Server) getEvacuation(w http.ResponseWriter, r *http.Request, nodeID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	e, err := s.scheduler.EvacuationOf(r.Context(), nodeID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showEvacuation(e))
	return nil
}

func (s *Server) cancelEvacuation(w http.ResponseWriter, r *http.Request, nodeID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &struct{}{}); err != nil {
		return err
	}
	e, err := s.scheduler.CancelEvacuation(r.Context(), nodeID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showEvacuation(e))
	return nil
}
