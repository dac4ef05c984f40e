package client

import (
	"context"
	"net/http"
)

// Health is how a replica and all that it needs are.
type Health struct {
	Status     string            `json:"status"`     // ok or degraded
	Role       string            `json:"role"`       // leader, follower, or none without a session
	Registry   string            `json:"registry"`   // ok or recovering; Status does not depend on it
	Subsystems map[string]string `json:"subsystems"` // nomad, consul, vault, audit: ok, unavailable or refused
}

// Health asks how a replica is. Degraded is an answer and no error.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	h := new(Health)
	return h, c.do(ctx, call{method: http.MethodGet, path: "/health", out: h, accepts: http.StatusServiceUnavailable, repeatable: true})
}

// Live returns nil when the process serves.
func (c *Client) Live(ctx context.Context) error { return c.get(ctx, noKey, "/live", nil) }

// Ready returns nil when the replica can answer admits of running engines.
func (c *Client) Ready(ctx context.Context) error { return c.get(ctx, noKey, "/ready", nil) }
