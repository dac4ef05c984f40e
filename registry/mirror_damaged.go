package registry

import (
	"slices"

	"github.com/septemberai/orch/engine"
)

// lose takes note of a row that cannot be read any more: it is in no list, and no
// decision is made from what it was. The lock is held.
func (m *Mirror) lose(name string, u *Unreadable) {
	if old := m.at(name); old != nil && old.Index > u.Index || u.Index <= m.removed[name] {
		return
	}
	if before := m.unreadable[name]; before == nil || before.Index != u.Index {
		m.log.Error("a row cannot be read and is left out of lists", "row", name, "newer", u.Newer, "error", u.Err)
	}
	m.unreadable[name] = u
	m.drop(name)
}

// Unreadable is how many rows of a product cannot be read; of all products with the
// product "".
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

// Twins are the rows of an engine_id when there are two or more: at most one of them
// can be right.
func (m *Mirror) Twins(engineID string) []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.twins[engineID])
}

// putID notes which row an engine_id has. The lock is held.
func (m *Mirror) putID(e *engine.Row) {
	if other := m.byID[e.EngineID]; other != nil {
		if m.twins[e.EngineID] == nil {
			m.twins[e.EngineID] = []*engine.Row{other}
		}
		m.twins[e.EngineID] = append(m.twins[e.EngineID], e)
	}
	m.byID[e.EngineID] = e
}

// dropID forgets which row an engine_id has. The lock is held.
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
