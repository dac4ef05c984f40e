package health

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// selfProbers is how many engines without a check are probed concurrently.
const selfProbers = 32

// selfProbes are the states of engines whose check nobody runs, because Consul does not
// have it, or because its agent on their node is dead. The leader probes these engines
// itself, as often as Consul would.
type selfProbes struct {
	slots chan struct{}
	work  sync.WaitGroup

	mu sync.Mutex
	of map[string]*selfProbe // by engine_id
}

type selfProbe struct {
	allocID  string
	next     time.Time
	busy     bool
	failures int       // successive failures
	unproven bool      // the last response came from a process whose certificate is not verified
	healthy  time.Time // when it was last healthy
}

func newSelfProbes() *selfProbes {
	return &selfProbes{slots: make(chan struct{}, selfProbers), of: map[string]*selfProbe{}}
}

// unwatched reports whether nobody runs the check of a running engine.
func (m *Monitor) unwatched(row *engine.Row) bool {
	if row.State != engine.Running || row.Op != nil || row.URL == "" || m.d.Detector.By == boot.ByConsul {
		return false
	}
	standing, _ := m.d.Checks.Of(row)
	return standing == registry.Absent || standing == registry.Unknown && m.d.Checks.AgentDead(row)
}

// probeUnwatched probes those of the rows that are unwatched and due, in goroutines that
// work waits for, and forgets the others.
func (m *Monitor) probeUnwatched(ctx context.Context, rows []*engine.Row, now time.Time) {
	p := m.self
	unwatched := map[string]bool{}
	for _, row := range rows {
		if m.unwatched(row) {
			unwatched[row.EngineID] = true
			m.probeOne(ctx, row, now)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, probe := range p.of {
		if !unwatched[id] && !probe.busy {
			delete(p.of, id)
		}
	}
}

func (m *Monitor) probeOne(ctx context.Context, row *engine.Row, now time.Time) {
	p := m.self
	p.mu.Lock()
	defer p.mu.Unlock()
	probe := p.of[row.EngineID]
	if probe == nil || probe.allocID != row.AllocID {
		probe = &selfProbe{allocID: row.AllocID}
		p.of[row.EngineID] = probe
	}
	if probe.busy || now.Before(probe.next) {
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return // it is due at the next check, too
	}
	probe.busy = true
	p.work.Go(func() {
		defer func() { <-p.slots }()
		err := m.d.Detector.Health(ctx, boot.Process{URL: row.URL, JobID: row.JobID(), AllocID: row.AllocID})
		var told *boot.Secondhand
		p.mu.Lock()
		defer p.mu.Unlock()
		probe.busy, probe.next = false, time.Now().Add(m.d.CheckEvery)
		before := probe.unproven
		if probe.unproven = boot.Unproven(err); probe.unproven && !before {
			m.d.Log.Warn("the service cannot verify an engine, and nobody runs its check: whether it serves is unknown, so it is not restarted", "engine_id", row.EngineID, "product_id", row.ProductID, "error", err)
		}
		switch {
		case err == nil:
			probe.failures, probe.healthy = 0, time.Now().UTC()
		case probe.unproven: // a restart would not change who verifies it
			probe.failures = 0
		case errors.As(err, &told) && !told.Settled: // without a connection, that shows nothing
		case ctx.Err() == nil:
			probe.failures++
		}
	})
}

// failing reports whether an unwatched engine has failed max successive probes.
func (p *selfProbes) failing(row *engine.Row, max int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	probe := p.of[row.EngineID]
	return probe != nil && probe.allocID == row.AllocID && probe.failures >= max
}

// healthy returns when an engine last reported to this replica that it is healthy; zero:
// not since it is probed.
func (p *selfProbes) healthy(row *engine.Row) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if probe := p.of[row.EngineID]; probe != nil && probe.allocID == row.AllocID {
		return probe.healthy
	}
	return time.Time{}
}

// fails reports whether an engine's check is critical, or it does not respond to the
// service.
func (m *Monitor) fails(row *engine.Row) bool {
	standing, _ := m.d.Checks.Of(row)
	return standing == registry.Critical || m.self.failing(row, m.d.MaxFailures)
}

// LastHealth returns when the service last knew that an engine was healthy.
func (m *Monitor) LastHealth(e *engine.Row) time.Time {
	last := e.LastHealthAt
	if e.State != engine.Running {
		return last
	}
	standing, at := m.d.Checks.Of(e)
	if standing == registry.Passing && at.After(last) {
		last = at.UTC()
	}
	if at := m.self.healthy(e); at.After(last) {
		last = at
	}
	return last
}
