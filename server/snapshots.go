package server

import (
	"net/http"
	"unicode"
	"unicode/utf8"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
)

const (
	// maxLabel is the maximum length of a snapshot's label, in characters.
	maxLabel = 100
	// Limits of a page of snapshots, each of which the store reads one by one.
	defaultSnapshots = 50
	maxSnapshots     = 100
)

// snapshotAnswer is a snapshot in a response.
type snapshotAnswer struct {
	SnapshotID    string `json:"snapshot_id"`
	EngineID      string `json:"engine_id"`
	UserID        string `json:"user_id"`
	CreatedAt     string `json:"created_at"`
	Bytes         int64  `json:"bytes"`
	StoredBytes   int64  `json:"stored_bytes"`
	SHA256        string `json:"sha256"`
	EngineVersion string `json:"engine_version"`
	Trigger       string `json:"trigger"`
	Label         string `json:"label"`
	FrozenMS      int64  `json:"frozen_ms"`
	Changed       int64  `json:"changed"`
}

// showSnapshot shows a snapshot to the user's product. A manifest need not name the user,
// so the user is that of the call.
func showSnapshot(m *brain.Manifest, userID string) snapshotAnswer {
	return snapshotAnswer{
		SnapshotID: m.SnapshotID, EngineID: m.EngineID, UserID: userID, CreatedAt: timestamp(m.CreatedAt), Bytes: m.Bytes, StoredBytes: m.StoredBytes,
		SHA256: m.SHA256, EngineVersion: m.EngineVersion, Trigger: m.Trigger, Label: m.Label, FrozenMS: m.FrozenMS, Changed: m.Changed,
	}
}

func (s *Server) takeSnapshot(w http.ResponseWriter, r *http.Request, userID string) error {
	var body snapshotBody
	c, err := s.change(w, r, userID, &body)
	if err != nil {
		return err
	}
	if err := body.check(); err != nil {
		return err
	}
	m, err := s.scheduler.Snapshot(r.Context(), c, body.Label)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Snapshot snapshotAnswer `json:"snapshot"`
	}{showSnapshot(m, userID)})
	return nil
}

func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.caller(r, userID)
	if err != nil {
		return err
	}
	q := queryOf(r, "limit", "cursor")
	limit, cursor := q.number("limit", defaultSnapshots, 1, maxSnapshots), q.text("cursor")
	if q.err != nil {
		return q.err
	}
	list, next, err := s.scheduler.Snapshots(r.Context(), c, limit, cursor)
	if err != nil {
		return err
	}
	answer := struct {
		Snapshots []snapshotAnswer `json:"snapshots"`
		Next      string           `json:"next_cursor,omitempty"`
	}{make([]snapshotAnswer, 0, len(list)), next}
	for _, m := range list {
		answer.Snapshots = append(answer.Snapshots, showSnapshot(m, userID))
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// deleteSnapshot returns the handler that deletes one snapshot of a user's engine.
func (s *Server) deleteSnapshot(snapshotID string) handler {
	return func(w http.ResponseWriter, r *http.Request, userID string) error {
		c, err := s.caller(r, userID)
		if err != nil {
			return err
		}
		if err := decode(w, r, &emptyBody{}); err != nil {
			return err
		}
		if err := s.scheduler.DeleteSnapshot(r.Context(), c, snapshotID); err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, struct {
			Status string `json:"status"`
		}{"deleted"})
		return nil
	}
}

func (s *Server) restore(w http.ResponseWriter, r *http.Request, userID string) error {
	var body restoreBody
	c, err := s.change(w, r, userID, &body)
	if err != nil {
		return err
	}
	id, err := snapshotOf(body.SnapshotID, "the newest")
	if err != nil {
		return err
	}
	e, key, err := s.scheduler.Restore(r.Context(), c, id)
	if err != nil {
		return err
	}
	writeProvisioned(w, e, key)
	return nil
}

func (s *Server) fork(w http.ResponseWriter, r *http.Request, userID string) error {
	var body forkBody
	c, err := s.change(w, r, userID, &body)
	if err != nil {
		return err
	}
	if err := engine.CheckUserID(body.UserID); err != nil {
		return invalid("the body: %v", err)
	}
	id, err := snapshotOf(body.SnapshotID, "a new one")
	if err != nil {
		return err
	}
	e, key, err := s.scheduler.Fork(r.Context(), c, body.UserID, id)
	if err != nil {
		return err
	}
	writeProvisioned(w, e, key)
	return nil
}

// check returns INVALID_REQUEST for a label that cannot be stored.
func (b *snapshotBody) check() error {
	if utf8.RuneCountInString(b.Label) > maxLabel {
		return invalid("label has more than %d characters", maxLabel)
	}
	for _, c := range b.Label {
		if unicode.IsControl(c) {
			return invalid("label contains a control character")
		}
	}
	return nil
}

// snapshotOf returns the snapshot that a body names; "": it names none, and gets what def
// says.
func snapshotOf(named *string, def string) (string, error) {
	if named == nil {
		return "", nil
	}
	if *named == "" {
		return "", invalid("snapshot_id is empty; leave it out for %s", def)
	}
	return *named, nil
}

// writeProvisioned sends a usable engine with its key, after a provision, a restore or a
// fork.
func writeProvisioned(w http.ResponseWriter, e *engine.Row, key string) {
	secret(w)
	writeJSON(w, http.StatusOK, struct {
		EngineID string       `json:"engine_id"`
		UserID   string       `json:"user_id"`
		Status   engine.State `json:"status"`
		URL      string       `json:"url"`
		APIKey   string       `json:"api_key"`
	}{e.EngineID, e.UserID, e.State, e.URL, key})
}
