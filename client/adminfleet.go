package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// FleetFilter selects engines of all products, and a page of them. A zero field does not
// filter.
type FleetFilter struct {
	ProductID, EngineID, UserID, NodeID string

	Status string // one of the states
	Reason string // such as "crashed"
	Limit  int    // engines per page: 1 to 1000; 0: 100
	Cursor string // NextCursor of the previous page
}

// FleetEngines lists one page of the engines of all products, oldest first, each with its
// ProductID, ProductSlug and NodeID. It is for the admin.
func (c *Client) FleetEngines(ctx context.Context, f FleetFilter) (*EngineList, error) {
	q := query{}
	for name, value := range map[string]string{
		"product_id": f.ProductID, "engine_id": f.EngineID, "user_id": f.UserID, "node_id": f.NodeID, "status": f.Status, "reason": f.Reason, "cursor": f.Cursor,
	} {
		q.text(name, value)
	}
	q.number("limit", f.Limit)
	list := new(EngineList)
	return list, c.do(ctx, call{
		method: http.MethodGet, path: withQuery("/engines", url.Values(q)), keys: admin, out: list, repeatable: true,
		answered: func(h http.Header) { list.Age = viewAge(h) },
	})
}

// AllFleetEngines iterates over the engines of all pages from the filter's page on. It ends
// after an error. It is for the admin.
func (c *Client) AllFleetEngines(ctx context.Context, f FleetFilter) iter.Seq2[Engine, error] {
	return walk(func(cursor string) ([]Engine, string, error) {
		if cursor != "" {
			f.Cursor = cursor
		}
		list, err := c.FleetEngines(ctx, f)
		return list.Engines, list.NextCursor, err
	})
}

// EngineByID reads an engine of whatever product by its EngineID, without its key. It is for
// the admin.
func (c *Client) EngineByID(ctx context.Context, engineID string) (*Engine, error) {
	e := new(Engine)
	return e, c.get(ctx, admin, "/engines/by-id/"+url.PathEscape(engineID), e)
}

// Node is a node, with what the service has there.
type Node struct {
	NodeID   string `json:"node_id"`
	Name     string `json:"name"`      // empty: Nomad does not know the node
	NodePool string `json:"node_pool"` // empty: Nomad does not know the node
	// Status is initializing, ready, down or disconnected; or unknown: Nomad does not know
	// the node, but engines are recorded there.
	Status   string `json:"status"`
	Eligible bool   `json:"eligible"` // it takes new allocations
	// Engines counts users' engines by state, for all six states, and WarmEngines those
	// without a user.
	Engines      map[string]int `json:"engines"`
	WarmEngines  int            `json:"warm_engines"`
	Room         Room           `json:"room"`
	ReadyVolumes int            `json:"ready_volumes"` // empty volumes that wait for an engine
	ConsulAgent  string         `json:"consul_agent"`  // ok, failing or unknown
}

// Room is what no allocation has reserved on a node.
type Room struct {
	CPUMHz   int `json:"cpu_mhz"`
	MemoryMB int `json:"memory_mb"`
	DiskMB   int `json:"disk_mb"`
	Ports    int `json:"ports"`
}

// NodeList is all nodes, by name.
type NodeList struct {
	Nodes []Node        `json:"nodes"`
	Total int           `json:"total"`
	Age   time.Duration `json:"-"` // age of the view that the engines were counted in
}

// Nodes lists the nodes. It is for the admin.
func (c *Client) Nodes(ctx context.Context) (*NodeList, error) {
	list := new(NodeList)
	return list, c.do(ctx, call{
		method: http.MethodGet, path: "/nodes", keys: admin, out: list, repeatable: true,
		answered: func(h http.Header) { list.Age = viewAge(h) },
	})
}
