package client

import (
	"context"
	"net/http"
)

// Action is one action of a reconcile pass.
type Action struct {
	Subject   string `json:"subject"`
	EngineID  string `json:"engine_id"`
	ProductID string `json:"product_id,omitempty"`
	UserID    string `json:"user_id,omitempty"`
	Action    string `json:"action"`
	Why       string `json:"why"`
}

// Plan is what a reconcile pass would do now. Incomplete names the lists that the service
// could not read; without all lists, a pass removes nothing.
type Plan struct {
	Actions    []Action `json:"actions"`
	Incomplete []string `json:"incomplete"`
}

// PlanReconcile reads what a reconcile pass would do now. It is for the admin.
func (c *Client) PlanReconcile(ctx context.Context) (*Plan, error) {
	p := new(Plan)
	return p, c.get(ctx, admin, "/reconcile", p)
}

// Reconcile requests a pass now, and does not wait for it. It is for the admin.
func (c *Client) Reconcile(ctx context.Context) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/reconcile", keys: admin, repeatable: true})
}
