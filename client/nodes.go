package client

import (
	"context"
	"net/http"
	"net/url"
)

// NodeAdoption is the result of AdoptNode.
type NodeAdoption struct {
	Adopted int `json:"adopted"` // engines that have a volume again
	Left    int `json:"left"`    // engines left for the next call
	Cleared int `json:"cleared"` // destroyed engines whose data was removed
	// Failed lists the engines that were not changed.
	Failed []NotAdopted `json:"failed"`
}

// NotAdopted is an engine that was not adopted, and the reason.
type NotAdopted struct {
	EngineID string `json:"engine_id"`
	Why      string `json:"why"`
}

// AdoptNode gives engines whose volume Nomad has lost a volume on the node to, where their
// data is. It is for the admin. from is the node on which the engines were: the same node
// if Nomad's servers lost their state, or the node's old id if its agent did.
// processesEnded confirms that no process of these engines is running on the node; without
// it the service ends them. The call may be repeated.
func (c *Client) AdoptNode(ctx context.Context, from, to string, processesEnded bool) (*NodeAdoption, error) {
	done := new(NodeAdoption)
	return done, c.do(ctx, call{
		method: http.MethodPost, path: "/nodes/" + url.PathEscape(to) + "/adopt", keys: admin, out: done, repeatable: true,
		in: struct {
			From           string `json:"from,omitempty"`
			ProcessesEnded bool   `json:"processes_ended,omitempty"`
		}{from, processesEnded},
	})
}
