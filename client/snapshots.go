package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
	"unicode/utf8"
)

// Snapshot is a stored copy of an engine's brain.
type Snapshot struct {
	SnapshotID    string    `json:"snapshot_id"`
	EngineID      string    `json:"engine_id"`
	UserID        string    `json:"user_id"`
	CreatedAt     time.Time `json:"created_at"`     // when the brain was copied on its node
	Bytes         int64     `json:"bytes"`          // of all files of the brain, with their holes
	StoredBytes   int64     `json:"stored_bytes"`   // of the compressed and encrypted object
	SHA256        string    `json:"sha256"`         // of that object, in hex
	EngineVersion string    `json:"engine_version"` // the image of the engine that wrote the brain
	Trigger       string    `json:"trigger"`        // why it was taken: a stable word
	Label         string    `json:"label"`
	FrozenMS      int64     `json:"frozen_ms"` // how long the engine was frozen for the copy
	Changed       int64     `json:"changed"`   // files and directories that another process changed meanwhile
}

// SnapshotList is one page of an engine's snapshots, newest first.
type SnapshotList struct {
	Snapshots  []Snapshot `json:"snapshots"`
	NextCursor string     `json:"next_cursor,omitempty"` // empty: this is the last page
}

// SnapshotPage selects a page of an engine's snapshots.
type SnapshotPage struct {
	Limit  int    // snapshots per page: 1 to 100; 0: 50
	Cursor string // NextCursor of the previous page
}

// Snapshot takes a snapshot of the brain of a user's engine, and waits until it is stored.
// An empty label means none. If it takes longer than the service lets a call wait, the error
// is an [*UnderWay], and the snapshot continues.
func (c *Client) Snapshot(ctx context.Context, userID, label string, options ...ChangeOption) (*Snapshot, error) {
	var answer struct {
		Snapshot Snapshot `json:"snapshot"`
	}
	what := call{method: http.MethodPost, path: enginePath(userID) + "/snapshots", user: userID, keys: platform, out: &answer}
	if label != "" {
		what.in = map[string]string{"label": label}
	}
	err := c.change(ctx, what, options)
	return &answer.Snapshot, err
}

// Snapshots lists one page of the snapshots of a user's engine.
func (c *Client) Snapshots(ctx context.Context, userID string, p SnapshotPage) (*SnapshotList, error) {
	q := query{}
	q.number("limit", p.Limit)
	q.text("cursor", p.Cursor)
	list := new(SnapshotList)
	return list, c.do(ctx, call{
		method: http.MethodGet, path: withQuery(enginePath(userID)+"/snapshots", url.Values(q)), user: userID, keys: platform, out: list, repeatable: true,
	})
}

// AllSnapshots iterates over the snapshots of a user's engine, newest first. It ends after an
// error.
func (c *Client) AllSnapshots(ctx context.Context, userID string) iter.Seq2[Snapshot, error] {
	return walk(func(cursor string) ([]Snapshot, string, error) {
		list, err := c.Snapshots(ctx, userID, SnapshotPage{Cursor: cursor})
		return list.Snapshots, list.NextCursor, err
	})
}

// DeleteSnapshot permanently deletes a snapshot of a user's engine.
func (c *Client) DeleteSnapshot(ctx context.Context, userID, snapshotID string) error {
	return c.do(ctx, call{
		method: http.MethodDelete, path: enginePath(userID) + "/snapshots/" + url.PathEscape(snapshotID), user: userID, keys: platform,
	})
}

// Restore puts a user's engine onto the brain in one of its snapshots, and waits until it is
// usable. An empty snapshotID means the newest. The engine gets a new key. An [*UnderWay] is
// as for [Client.Snapshot].
func (c *Client) Restore(ctx context.Context, userID, snapshotID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	what := call{method: http.MethodPost, path: enginePath(userID) + "/restore", user: userID, keys: platform, out: e}
	if snapshotID != "" {
		what.in = map[string]string{"snapshot_id": snapshotID}
	}
	return e, c.change(ctx, what, options)
}

// Fork creates an engine for another user, newUserID, with the brain in a snapshot of a
// user's engine, and waits until it is usable. An empty snapshotID means one that is taken
// now. An [*UnderWay] is as for [Client.Snapshot].
func (c *Client) Fork(ctx context.Context, userID, newUserID, snapshotID string, options ...ChangeOption) (*Engine, error) {
	if !utf8.ValidString(newUserID) {
		return nil, errUserID
	}
	e := new(Engine)
	what := call{method: http.MethodPost, path: enginePath(userID) + "/fork", user: userID, keys: platform, out: e, in: struct {
		UserID     string `json:"user_id"`
		SnapshotID string `json:"snapshot_id,omitempty"`
	}{newUserID, snapshotID}}
	return e, c.change(ctx, what, options)
}
