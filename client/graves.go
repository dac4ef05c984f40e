package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Grave is what is left of a destroyed engine: its node is silent, or Nomad does not
// know its volume any more.
type Grave struct {
	EngineID   string     `json:"engine_id"`
	ProductID  string     `json:"product_id"`
	UserID     string     `json:"user_id"`
	NodeID     string     `json:"node_id"`
	NodeName   string     `json:"node_name"`
	NodeSilent bool       `json:"node_silent"`
	VolumeID   string     `json:"volume_id"`
	VolumePath string     `json:"volume_path"` // on the node; empty where that is not known
	Since      *time.Time `json:"since"`
	Why        string     `json:"why"` // what keeps the volume there; empty: that is not known
}

// GraveList is all graves.
type GraveList struct {
	Graves []Grave `json:"graves"`
	Total  int     `json:"total"`
}

// Graves lists them all, as the admin.
func (c *Client) Graves(ctx context.Context) (*GraveList, error) {
	list := new(GraveList)
	return list, c.get(ctx, admin, "/graves", list)
}

// Bury forgets the grave of an engine for good, as the admin.
func (c *Client) Bury(ctx context.Context, engineID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/graves/" + url.PathEscape(engineID), keys: admin})
}
