package client

import (
	"context"
	"net/http"
)

// Rollout is the progress of a rollout of provider keys: "none", "rolling", "halted" or
// "done".
type Rollout struct {
	Status        string `json:"status"`
	TargetVersion int    `json:"target_version"`
	Pending       int    `json:"pending"`
	Restarted     int    `json:"restarted"`
	Failed        int    `json:"failed"`
}

// ApplyProviderKeys starts a rollout that restarts running engines, a few concurrently,
// until all have the newest provider keys. It does not wait for the end. It is for the
// admin.
func (c *Client) ApplyProviderKeys(ctx context.Context) (*Rollout, error) {
	r := new(Rollout)
	return r, c.do(ctx, call{method: http.MethodPost, path: "/provider-keys/apply", keys: admin, out: r, repeatable: true})
}

// ProviderKeys reads the progress of the last rollout. It is for the admin.
func (c *Client) ProviderKeys(ctx context.Context) (*Rollout, error) {
	r := new(Rollout)
	return r, c.get(ctx, admin, "/provider-keys", r)
}
