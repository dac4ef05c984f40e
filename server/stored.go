package server

import (
	"errors"
	"net/http"

	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
)

// storedAnswer is an engine of which the snapshot store has snapshots.
type storedAnswer struct {
	EngineID      string                 `json:"engine_id"`
	ProductID     string                 `json:"product_id"`
	UserID        string                 `json:"user_id"`
	Status        scheduler.StoredStatus `json:"status"`
	Why           string                 `json:"why"`
	Snapshots     int                    `json:"snapshots"`
	SnapshotID    string                 `json:"snapshot_id"`
	CreatedAt     *string                `json:"created_at"`
	Bytes         int64                  `json:"bytes"`
	StoredBytes   int64                  `json:"stored_bytes"`
	EngineVersion string                 `json:"engine_version"`
}

func showStored(e *scheduler.StoredEngine) storedAnswer {
	a := storedAnswer{EngineID: e.EngineID, ProductID: e.Owner.ProductID, UserID: e.Owner.UserID, Status: e.Status, Why: e.Why, Snapshots: e.Snapshots}
	if m := e.Newest; m != nil {
		a.SnapshotID, a.CreatedAt, a.Bytes, a.StoredBytes, a.EngineVersion = m.SnapshotID, optional(timestamp(m.CreatedAt)), m.Bytes, m.StoredBytes, m.EngineVersion
	}
	return a
}

func (s *Server) listStoredEngines(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	q := queryOf(r, "limit", "cursor")
	limit, cursor := q.number("limit", defaultSnapshots, 1, maxSnapshots), q.text("cursor")
	if q.err != nil {
		return q.err
	}
	list, next, err := s.scheduler.StoredEngines(r.Context(), limit, cursor)
	if err != nil {
		return err
	}
	answer := struct {
		Engines []storedAnswer `json:"engines"`
		Next    string         `json:"next_cursor,omitempty"`
	}{make([]storedAnswer, 0, len(list)), next}
	for _, e := range list {
		answer.Engines = append(answer.Engines, showStored(e))
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Server) importEngine(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	var body importBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	snapshot, err := snapshotOf(body.SnapshotID, "the newest")
	if err != nil {
		return err
	}
	e, err := s.scheduler.Import(r.Context(), engineID, snapshot)
	if errors.As(err, new(*operation.UnderWay)) {
		w.Header().Set("Location", byIDPath+engineID)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, adoptedAnswer{s.showEngine(e), e.ProductID})
	return nil
}
