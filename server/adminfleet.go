package server

import (
	"net/http"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// fleetEngine is an engine as the admin sees it, with its owner and its node.
type fleetEngine struct {
	listedEngine
	ProductID   string  `json:"product_id"`
	ProductSlug string  `json:"product_slug"`
	NodeID      *string `json:"node_id"`
}

func (s *Server) showFleetEngine(e *engine.Row) fleetEngine {
	return fleetEngine{s.showEngine(e), e.ProductID, e.ProductSlug, optional(e.NodeID)}
}

// listAllEngines lists the engines of all products for the admin.
func (s *Server) listAllEngines(w http.ResponseWriter, r *http.Request) error {
	if err := s.admin(r); err != nil {
		return err
	}
	q := queryOf(r, "product_id", "status", "engine_id", "user_id", "node_id", "reason", "limit", "cursor")
	ask := registry.FleetQuery{
		ProductID: q.text("product_id"), EngineID: q.text("engine_id"), UserID: q.text("user_id"), NodeID: q.text("node_id"), Reason: q.text("reason"),
		State: oneOf(q, "status", engine.States...), Limit: q.number("limit", defaultLimit, 1, maxLimit), Cursor: q.text("cursor"),
	}
	if q.checkUserID(true); q.err != nil {
		return q.err
	}
	f, err := s.scheduler.Whole()
	if err != nil {
		return err
	}
	rows, total, next, err := f.PageOfAll(ask)
	if err != nil {
		return err
	}
	answer := struct {
		Engines []fleetEngine `json:"engines"`
		Total   int           `json:"total"`
		Next    string        `json:"next_cursor,omitempty"`
	}{make([]fleetEngine, 0, len(rows)), total, next}
	for _, e := range rows {
		answer.Engines = append(answer.Engines, s.showFleetEngine(e))
	}
	viewAge(w, f.Age)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// getEngineByID shows the admin whose engine has an engine_id.
func (s *Server) getEngineByID(w http.ResponseWriter, r *http.Request, engineID string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	e, err := s.scheduler.EngineByID(r.Context(), engineID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s.showFleetEngine(e))
	return nil
}

// nodeAnswer is a node as the admin sees it.
type nodeAnswer struct {
	NodeID      string               `json:"node_id"`
	Name        string               `json:"name"`
	NodePool    string               `json:"node_pool"`
	Status      string               `json:"status"`
	Eligible    bool                 `json:"eligible"`
	Engines     map[engine.State]int `json:"engines"`
	Warm        int                  `json:"warm_engines"`
	Room        nodeRoom             `json:"room"`
	Ready       int                  `json:"ready_volumes"`
	ConsulAgent string               `json:"consul_agent"`
}

// nodeRoom is what no allocation has reserved on a node.
type nodeRoom struct {
	CPUMHz   int `json:"cpu_mhz"`
	MemoryMB int `json:"memory_mb"`
	DiskMB   int `json:"disk_mb"`
	Ports    int `json:"ports"`
}

// listNodes shows the admin what is on each node, and what could be.
func (s *Server) listNodes(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	nodes, age, err := s.scheduler.Nodes(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Nodes []nodeAnswer `json:"nodes"`
		Total int          `json:"total"`
	}{make([]nodeAnswer, 0, len(nodes)), len(nodes)}
	for _, n := range nodes {
		status := n.Status
		if !n.Known() {
			status = "unknown"
		}
		answer.Nodes = append(answer.Nodes, nodeAnswer{
			NodeID: n.ID, Name: n.Name, NodePool: n.Pool, Status: status, Eligible: n.Eligible, Engines: n.Engines, Warm: n.WarmEngines,
			Room:  nodeRoom{n.FreeCPUMHz, n.FreeMemoryMB, n.FreeDiskMB, n.FreePorts},
			Ready: n.ReadyVolumes, ConsulAgent: string(n.ConsulAgent),
		})
	}
	viewAge(w, age)
	writeJSON(w, http.StatusOK, answer)
	return nil
}
