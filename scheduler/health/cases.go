package health

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// engineCase is what the monitor remembers of one engine.
type engineCase struct {
	busy bool // it is being examined
	next time.Time
	wait time.Duration
}

// Needs reports whether the view shows an engine that must be examined, or would be without
// its operation.
func (m *Monitor) Needs(row *engine.Row) bool {
	free := *row
	free.Op = nil
	return m.amiss(&free)
}

// amiss reports whether the view shows an engine that must be examined in the stores.
func (m *Monitor) amiss(row *engine.Row) bool {
	if row.Op != nil {
		return false
	}
	if row.State == engine.Sleeping && row.Frozen != nil {
		alloc, known := m.d.Nomad.Newest(row.JobID())
		return !m.d.Engines.NodeSilent(row.NodeID) && !(known && boot.SameProcess(row.Frozen, row, &alloc))
	}
	if row.Desired != engine.Running {
		return false
	}
	if row.State == engine.Failed {
		return row.ProductID != engine.WarmProduct // warm engines are replaced
	}
	if row.State != engine.Running {
		return false
	}
	alloc, known := m.d.Nomad.Newest(row.JobID())
	return !known || alloc.Terminal() || alloc.Desired != api.AllocDesiredStatusRun || alloc.Client == api.AllocClientStatusUnknown ||
		alloc.ID != row.AllocID || alloc.Crash > row.Crash || m.d.Engines.NodeSilent(row.NodeID) || m.fails(row) || row.Reason != ""
}

// take reports whether an engine is due for an examination, and reserves it.
func (m *Monitor) take(engineID string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.cases[engineID]
	if c == nil {
		c = &engineCase{}
		m.cases[engineID] = c
	}
	if c.busy || now.Before(c.next) {
		return false
	}
	c.busy = true
	delete(m.asked, engineID)
	return true
}

func (m *Monitor) isAsked(engineID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[engineID]
}

// Held reports whether restarts are held back.
func (m *Monitor) Held() bool { return m.storm.held() }

// Requeue makes the monitor examine an engine with the next check, whatever the view shows,
// because the view is only a hint.
func (m *Monitor) Requeue(engineID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked[engineID] = true
	if c := m.cases[engineID]; c != nil && !c.busy {
		delete(m.cases, engineID)
	}
}

// forget drops what is remembered of engines that no longer exist or are as they should be.
func (m *Monitor) forget(rows []*engine.Row) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cases) == 0 && len(m.asked) == 0 {
		return
	}
	amiss, there := make(map[string]bool, len(m.cases)), make(map[string]bool, len(rows))
	for _, row := range rows {
		there[row.EngineID] = true
		if c := m.cases[row.EngineID]; c != nil && (row.Op != nil || m.amiss(row)) {
			amiss[row.EngineID] = true
		}
	}
	for id, c := range m.cases {
		if !amiss[id] && !c.busy {
			delete(m.cases, id)
		}
	}
	for id := range m.asked {
		if !there[id] {
			delete(m.asked, id)
		}
	}
}
