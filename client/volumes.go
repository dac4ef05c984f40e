package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// UnreachableVolume is what is left of a destroyed engine: its node is silent, or Nomad does not
// know its volume any more.
type UnreachableVolume struct {
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

// UnreachableVolumeList is all unreachable volumes.
type UnreachableVolumeList struct {
	UnreachableVolumes []UnreachableVolume `json:"unreachable_volumes"`
	Total              int                 `json:"total"`
}

// UnreachableVolumes lists them all, as the admin.
func (c *Client) UnreachableVolumes(ctx context.Context) (*UnreachableVolumeList, error) {
	list := new(UnreachableVolumeList)
	return list, c.get(ctx, admin, "/unreachable-volumes", list)
}

// ForgetVolume forgets the unreachable volume of an engine for good, as the admin.
func (c *Client) ForgetVolume(ctx context.Context, engineID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/unreachable-volumes/" + url.PathEscape(engineID), keys: admin})
}
