package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// FleetQuery selects a part of the engines of all products. An empty field selects all.
type FleetQuery struct {
	ProductID, EngineID, UserID, NodeID, Reason string
	State                                       engine.State
	Limit                                       int
	Cursor                                      string // from the previous page; empty: from the start
}

func (q *FleetQuery) selects(e *engine.Row) bool {
	return (q.State == "" || e.State == q.State) && (q.NodeID == "" || e.NodeID == q.NodeID) && (q.Reason == "" || e.Reason == q.Reason) &&
		(q.UserID == "" || e.UserID == q.UserID) && (q.EngineID == "" || e.EngineID == q.EngineID)
}

// FleetPage returns rows of all products, oldest first, the number of all matching rows, and
// the cursor of the next page, which is empty on the last. A cursor is a place in the order
// of all engines, so it stays valid whatever comes and goes. Warm engines belong to no
// product and are not included. ErrCursor.
func (m *Mirror) FleetPage(q FleetQuery) (rows []*engine.Row, total int, next string, err error) {
	var from *engine.Row
	if q.Cursor != "" {
		if from, err = parseCursor("", q.Cursor); err != nil {
			return nil, 0, "", err
		}
	}
	if q.ProductID == engine.WarmProduct {
		return nil, 0, "", nil
	}
	m.mu.RLock()
	for _, t := range m.of(q.ProductID) {
		for _, e := range t.rows {
			if !q.selects(e) {
				continue
			}
			total++
			if from == nil || before(from, e) < 0 {
				rows = append(rows, e)
			}
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(rows, before)
	if len(rows) > q.Limit {
		rows = rows[:q.Limit]
		next = cursorAfter("", rows[q.Limit-1])
	}
	return rows, total, next, nil
}

// NodeCounts is how many engines a node has.
type NodeCounts struct {
	ByState map[engine.State]int // users' engines; the states that occur
	Warm    int                  // engines without a user, in any state
}

// ByNode returns the counts of every node that a row names.
func (m *Mirror) ByNode() map[string]NodeCounts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := map[string]NodeCounts{}
	for product, t := range m.tenants {
		for _, e := range t.rows {
			if e.NodeID == "" {
				continue
			}
			n := all[e.NodeID]
			if product == engine.WarmProduct {
				n.Warm++
			} else {
				if n.ByState == nil {
					n.ByState = map[engine.State]int{}
				}
				n.ByState[e.State]++
			}
			all[e.NodeID] = n
		}
	}
	return all
}

// EngineByID reads the row that the index assigns to an engine_id. ErrNotFound: none has it.
func (s *Store) EngineByID(ctx context.Context, engineID string) (*engine.Row, error) {
	pair, err := s.get(ctx, s.engineIDKey(engineID))
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, fmt.Errorf("%w: engine %q", ErrNotFound, engineID)
	}
	name, ours := strings.CutPrefix(string(pair.Value), enginesBelow)
	productID, userID, err := parseRowName(name)
	if !ours || err != nil { // the leader repairs the index (Mend)
		return nil, fmt.Errorf("%w: the index of engine %q does not lead to a row", ErrNotFound, engineID)
	}
	e, err := s.Engine(ctx, productID, userID)
	if err == nil && e.EngineID != engineID { // the index is older than the row
		return nil, fmt.Errorf("%w: engine %q", ErrNotFound, engineID)
	}
	return e, err
}

// Agents returns, by the name of its node, whether each of Consul's agents responds. It does
// not contain the agents that the token may not read.
func (s *Store) Agents(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	checks, _, err := s.client.Health().State(consul.HealthAny, (&consul.QueryOptions{Filter: `CheckID == "` + serfHealth + `"`}).WithContext(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	agents := make(map[string]bool, len(checks))
	for _, check := range checks {
		agents[check.Node] = check.Status == consul.HealthPassing
	}
	return agents, nil
}
