package client

import (
	"context"
	"net/http"
)

// Rollout is how far new provider keys have come: "none", "rolling", "halted" or
// "done".
type Rollout struct {
	Status        string `json:"status"`
	TargetVersion int    `json:"target_version"`
	Pending       int    `json:"pending"`
	Restarted     int    `json:"restarted"`
	Failed        int    `json:"failed"`
}

// ApplyProviderKeys has running engines restarted, a few at a time, until all
// have the newest provider keys, as the admin; it does not wait for that.
func (c *Client) ApplyProviderKeys(ctx context.Context) (*Rollout, error) {
	r := new(Rollout)
	return r, c.do(ctx, call{method: http.MethodPost, path: "/provider-keys/apply", keys: admin, out: r, repeatable: true})
}

// ProviderKeys reads how far the last rollout has come, as the admin.
func (c *Client) ProviderKeys(ctx context.Context) (*Rollout, error) {
	r := new(Rollout)
	return r, c.get(ctx, admin, "/provider-keys", r)
}
