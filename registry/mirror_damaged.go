package registry

import (
	"slices"

	"github.com/septemberai/orch/engine"
)

// lose handles a row that can no longer be read: it is in no list, and its last content is
// used for no decision. The caller holds the lock.
func (m *Mirror) lose(name string, u *Unreadable) {
	if old := m.at(name); old != nil && old.Index > u.Index || u.Index <= m.removed[name] {
		return
	}
	if before := m.unreadable[name]; before == nil || before.Index != u.Index {
		m.log.Error("cannot read a row, omitting it from lists", "row", name, "newer", u.Newer, "error", u.Err)
	}
	m.unreadable[name] = u
	m.drop(name)
}

// Unreadable returns how many rows of a product cannot be read; product "": of all
// products.
func (m *Mirror) Unreadable(productID string) (n int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, u := range m.unreadable {
		if productID == "" || u.ProductID == productID {
			n++
		}
	}
	return n
}

// Twins returns the rows that share an engine_id, if there are several: at most one of them
// can be right.
func (m *Mirror) Twins(engineID string) []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.twins[engineID])
}

// putID records which row an engine_id belongs to. The caller holds the lock.
func (m *Mirror) putID(e *engine.Row) {
	if other := m.byID[e.EngineID]; other != nil {
		if m.twins[e.EngineID] == nil {
			m.twins[e.EngineID] = []*engine.Row{other}
		}
		m.twins[e.EngineID] = append(m.twins[e.EngineID], e)
	}
	m.byID[e.EngineID] = e
}

// dropID removes that record. The caller holds the lock.
func (m *Mirror) dropID(e *engine.Row) {
	left := slices.DeleteFunc(m.twins[e.EngineID], func(other *engine.Row) bool { return other == e })
	if len(left) < 2 {
		delete(m.twins, e.EngineID)
	} else {
		m.twins[e.EngineID] = left
	}
	switch {
	case m.byID[e.EngineID] != e:
	case len(left) > 0:
		m.byID[e.EngineID] = left[len(left)-1]
	default:
		delete(m.byID, e.EngineID)
	}
}
