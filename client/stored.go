package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// StoredEngine is an engine of which the snapshot store has snapshots.
type StoredEngine struct {
	EngineID string `json:"engine_id"`
	// ProductID and UserID are the owner; empty: unknown.
	ProductID string `json:"product_id"`
	UserID    string `json:"user_id"`
	Status    string `json:"status"` // importable, or a stable word that says why not
	Why       string `json:"why"`    // the same, for the admin
	Snapshots int    `json:"snapshots"`
	// The following describe the snapshot that an import restores. They are empty if it cannot
	// be read.
	SnapshotID    string     `json:"snapshot_id"`
	CreatedAt     *time.Time `json:"created_at"`
	Bytes         int64      `json:"bytes"`
	StoredBytes   int64      `json:"stored_bytes"`
	EngineVersion string     `json:"engine_version"`
}

// Importable is the status of an engine that [Client.Import] brings back.
const Importable = "importable"

// StoredEngineList is one page of the engines in the snapshot store.
type StoredEngineList struct {
	Engines    []StoredEngine `json:"engines"`
	NextCursor string         `json:"next_cursor,omitempty"` // empty: this is the last page
}

// StoredEngines lists one page of the engines of which the snapshot store has snapshots. It is
// for the admin.
func (c *Client) StoredEngines(ctx context.Context, p SnapshotPage) (*StoredEngineList, error) {
	q := query{}
	q.number("limit", p.Limit)
	q.text("cursor", p.Cursor)
	list := new(StoredEngineList)
	return list, c.do(ctx, call{method: http.MethodGet, path: withQuery("/stored-engines", url.Values(q)), keys: admin, out: list, repeatable: true})
}

// AllStoredEngines iterates over the engines of which the snapshot store has snapshots. It
// ends after an error. It is for the admin.
func (c *Client) AllStoredEngines(ctx context.Context) iter.Seq2[StoredEngine, error] {
	return walk(func(cursor string) ([]StoredEngine, string, error) {
		list, err := c.StoredEngines(ctx, SnapshotPage{Cursor: cursor})
		return list.Engines, list.NextCursor, err
	})
}

// Import brings an engine back that only the snapshot store and the key store have, and waits
// until it is usable. An empty snapshotID means its newest snapshot. The engine is returned
// with its ProductID and without its key. An [*UnderWay] is as for [Client.Snapshot]. It is
// for the admin.
func (c *Client) Import(ctx context.Context, engineID, snapshotID string) (*Engine, error) {
	e := new(Engine)
	what := call{method: http.MethodPost, path: "/stored-engines/" + url.PathEscape(engineID) + "/import", keys: admin, out: e}
	if snapshotID != "" {
		what.in = map[string]string{"snapshot_id": snapshotID}
	}
	if prefer, _ := ctx.Value(preferAsync{}).(string); prefer != "" {
		what.header = http.Header{"Prefer": {prefer}}
	}
	return e, c.do(ctx, what)
}
