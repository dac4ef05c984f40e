package registry

import (
	"strings"

	"github.com/septemberai/orch/engine"
)

// wrote stores what this store has just written, in the form in which another store would
// read it.
func (m *Mirror) wrote(v stored) {
	if m == nil {
		return
	}
	e, err := m.store.decodeEngine(v)
	if err != nil {
		panic("registry: a stored row cannot be read: " + err.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(m.store.nameOf(v), e)
}

// erased removes a row that this store has just deleted.
func (m *Mirror) erased(e *engine.Row) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := rowName(e.ProductID, e.UserID)
	m.removed[name] = e.Index
	if m.young != nil {
		m.young[name] = true
	}
	delete(m.unreadable, name)
	m.drop(name)
}

// restored handles a consistent list that has older rows than this view, or rows that this
// store removed before the list began: Consul went back. The caller holds the lock.
func (m *Mirror) restored(told map[string]*engine.Row) {
	for name, e := range told {
		if e == nil || m.young[name] {
			continue
		}
		was := m.removed[name]
		if old := m.at(name); old != nil {
			was = max(was, old.Index)
		}
		if e.Index < was || e.Index == m.removed[name] {
			m.store.noteBack("a row", was, e.Index)
			m.drop(name)
			delete(m.removed, name)
		}
	}
}

// forget drops the rows below a part of engines/, and their indexes. The caller holds the
// lock.
func (m *Mirror) forget(below string) {
	for name := range m.below(below) {
		m.drop(name)
	}
	for name := range m.removed {
		if strings.HasPrefix(name, below) {
			delete(m.removed, name)
		}
	}
}

// put stores a row, unless a newer one is known. The caller holds the lock.
func (m *Mirror) put(name string, e *engine.Row) {
	if old := m.at(name); old != nil && old.Index >= e.Index || e.Index <= m.removed[name] {
		return
	}
	if u := m.unreadable[name]; u != nil && u.Index >= e.Index {
		return
	}
	m.drop(name)
	if m.young != nil {
		m.young[name] = true
	}
	delete(m.removed, name)
	delete(m.unreadable, name)
	if m.rows[shardOf(name)] == nil {
		m.rows[shardOf(name)] = map[string]*engine.Row{}
	}
	m.rows[shardOf(name)][name] = e
	m.putID(e)
	t := m.tenants[e.ProductID]
	if t == nil {
		t = &tenantRows{counts: map[engine.State]int{}}
		m.tenants[e.ProductID] = t
	}
	t.insert(e)
}

// drop removes a row. The caller holds the lock.
func (m *Mirror) drop(name string) {
	e := m.at(name)
	if e == nil {
		return
	}
	delete(m.rows[shardOf(name)], name)
	m.dropID(e)
	t := m.tenants[e.ProductID]
	if t.remove(e); len(t.rows) == 0 {
		delete(m.tenants, e.ProductID)
	}
}

// row returns the row of a name, or nil. A store without a mirror has a nil one.
func (m *Mirror) row(name string) *engine.Row {
	if m == nil {
		return nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.at(name)
}

// at returns the row of a name, or nil. The caller holds the lock.
func (m *Mirror) at(name string) *engine.Row { return m.rows[shardOf(name)][name] }
