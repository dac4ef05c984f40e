package client

import (
	"context"
	"net/http"
	"net/url"
)

// Evacuation is the progress of the removal of all engines from a node.
type Evacuation struct {
	NodeID string `json:"node_id"`
	// Status is "moving", "cancelling", "done", "cancelled", or "expired": the deadline of the node's drain
	// came first.
	Status string `json:"status"`
	// RequestedBy is "call" or "drain".
	RequestedBy string  `json:"requested_by"`
	RequestedAt string  `json:"requested_at"`
	EndedAt     *string `json:"ended_at"`
	// Total is how many engines the node had at the beginning, and Left how many it has, of
	// which Moving are on their way.
	Total  int `json:"total"`
	Left   int `json:"left"`
	Moving int `json:"moving"`
	// Waits is what the evacuation waits for; empty: nothing.
	Waits string `json:"waits"`
	// Failed are the engines whose last attempt failed. They are tried again.
	Failed []FailedMove `json:"failed"`
}

// FailedMove is an engine that could not be moved yet.
type FailedMove struct {
	EngineID  string `json:"engine_id"`
	ProductID string `json:"product_id"`
	UserID    string `json:"user_id"`
	Code      string `json:"code"`
	Message   string `json:"message"`
	At        string `json:"at"`
	Attempts  int    `json:"attempts"`
}

// Ended reports whether nothing is moved any more.
func (e *Evacuation) Ended() bool { return e.Status != "moving" && e.Status != "cancelling" }

func evacuation(nodeID string) string { return "/nodes/" + url.PathEscape(nodeID) + "/evacuate" }

// Evacuate begins to move all engines of a node to other nodes, and returns at once. It is for
// the admin. The call may be repeated.
func (c *Client) Evacuate(ctx context.Context, nodeID string) (*Evacuation, error) {
	e := new(Evacuation)
	return e, c.do(ctx, call{method: http.MethodPost, path: evacuation(nodeID), keys: admin, out: e, repeatable: true})
}

// Evacuation returns the progress of a node's last evacuation. It is for the admin.
func (c *Client) Evacuation(ctx context.Context, nodeID string) (*Evacuation, error) {
	e := new(Evacuation)
	return e, c.get(ctx, admin, evacuation(nodeID), e)
}

// CancelEvacuation ends a node's evacuation: engines that were stopped for their move still
// arrive. It is for the admin.
func (c *Client) CancelEvacuation(ctx context.Context, nodeID string) (*Evacuation, error) {
	e := new(Evacuation)
	return e, c.do(ctx, call{method: http.MethodDelete, path: evacuation(nodeID), keys: admin, out: e, repeatable: true})
}
