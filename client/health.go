package client

import (
	"context"
	"net/http"
)

// Health is the state of a replica and of its dependencies.
type Health struct {
	Status     string            `json:"status"`     // ok or degraded
	Role       string            `json:"role"`       // leader, follower, or none without a session
	Registry   string            `json:"registry"`   // ok or recovering; Status does not depend on it
	Subsystems map[string]string `json:"subsystems"` // nomad, consul, vault, audit: ok, unavailable or refused
}

// Health reads the state of a replica. A degraded replica is not an error.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	h := new(Health)
	return h, c.do(ctx, call{method: http.MethodGet, path: "/health", out: h, accepts: http.StatusServiceUnavailable, repeatable: true})
}

// Live returns nil when the process serves.
func (c *Client) Live(ctx context.Context) error { return c.get(ctx, noKey, "/live", nil) }

// Ready returns nil if the replica can admit users to running engines.
func (c *Client) Ready(ctx context.Context) error { return c.get(ctx, noKey, "/ready", nil) }
