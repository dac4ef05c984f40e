package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Quarantined is an engine that is neither handed out nor removed until an admin decides
// who its owner is.
type Quarantined struct {
	EngineID string     `json:"engine_id"`
	Since    *time.Time `json:"since"`
	Why      string     `json:"why"`
	What     []string   `json:"what"` // the parts that exist: row, job, volume, variable, key
	// ProductID and UserID are the likely owner, if any record names one; otherwise they
	// are empty.
	ProductID string `json:"product_id"`
	UserID    string `json:"user_id"`
	NodeID    string `json:"node_id"`
}

// QuarantineList is all quarantined engines, oldest first.
type QuarantineList struct {
	Engines []Quarantined `json:"engines"`
	Total   int           `json:"total"`
}

func quarantinePath(engineID string) string { return "/quarantine/" + url.PathEscape(engineID) }

// Quarantine lists the quarantined engines. It is for the admin.
func (c *Client) Quarantine(ctx context.Context) (*QuarantineList, error) {
	list := new(QuarantineList)
	return list, c.get(ctx, admin, "/quarantine", list)
}

// Adopt gives a quarantined engine to a user, and returns it with its ProductID and without
// its key. If productID and userID are empty, the engine's witnesses determine the user. It
// is for the admin.
func (c *Client) Adopt(ctx context.Context, engineID, productID, userID string) (*Engine, error) {
	e := new(Engine)
	what := call{method: http.MethodPost, path: quarantinePath(engineID) + "/adopt", keys: admin, out: e}
	if productID != "" || userID != "" { // an empty body names nobody
		what.in = struct {
			ProductID string `json:"product_id,omitempty"`
			UserID    string `json:"user_id,omitempty"`
		}{productID, userID}
	}
	return e, c.do(ctx, what)
}

// Discard permanently removes a quarantined engine, with its brain and key. It is for the
// admin.
func (c *Client) Discard(ctx context.Context, engineID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: quarantinePath(engineID), keys: admin})
}
