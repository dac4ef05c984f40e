package client

import (
	"context"
	"net/http"
	"net/url"
)

// NodeAdoption is what a call of AdoptNode did.
type NodeAdoption struct {
	Adopted int `json:"adopted"` // engines that have a volume again
	Left    int `json:"left"`    // engines that the next call has to do
	Cleared int `json:"cleared"` // destroyed engines whose data was removed
	// Failed are the engines that stay as they were.
	Failed []NotAdopted `json:"failed"`
}

// NotAdopted is an engine that was not adopted, and why.
type NotAdopted struct {
	EngineID string `json:"engine_id"`
	Why      string `json:"why"`
}

// AdoptNode gives engines whose volume Nomad has lost a volume again, on the node to,
// where their data is, as the admin. from is the node that they were on: the same one
// when Nomad's servers lost their state, the old id of the node when its agent did.
// processesEnded is the caller's word that no process of these engines is left on the
// node; without it the service ends them. It may be called again.
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
