package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// UnreachableVolume is the volume of a destroyed engine that could not be deleted yet: its
// node does not respond, or Nomad no longer knows the volume.
type UnreachableVolume struct {
	EngineID   string     `json:"engine_id"`
	ProductID  string     `json:"product_id"`
	UserID     string     `json:"user_id"`
	NodeID     string     `json:"node_id"`
	NodeName   string     `json:"node_name"`
	NodeSilent bool       `json:"node_silent"`
	VolumeID   string     `json:"volume_id"`
	VolumePath string     `json:"volume_path"` // on the node; empty if unknown
	Since      *time.Time `json:"since"`
	Why        string     `json:"why"` // why the volume cannot be deleted; empty if unknown
}

// UnreachableVolumeList is all unreachable volumes.
type UnreachableVolumeList struct {
	UnreachableVolumes []UnreachableVolume `json:"unreachable_volumes"`
	Total              int                 `json:"total"`
}

// UnreachableVolumes lists all unreachable volumes. It is for the admin.
func (c *Client) UnreachableVolumes(ctx context.Context) (*UnreachableVolumeList, error) {
	list := new(UnreachableVolumeList)
	return list, c.get(ctx, admin, "/unreachable-volumes", list)
}

// ForgetVolume permanently forgets the unreachable volume of an engine. It is for the
// admin.
func (c *Client) ForgetVolume(ctx context.Context, engineID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/unreachable-volumes/" + url.PathEscape(engineID), keys: admin})
}
