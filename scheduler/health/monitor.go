package health

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

const (
	// glanceEvery is the interval at which the leader checks all engines in the view: a
	// node reports a crash within 200 ms, and it is noticed in under 2 s.
	// This check needs no call.
	glanceEvery = 500 * time.Millisecond
	// lookAgain is how long the result of an examination is used: firstLook while an
	// engine's case changes, up to lastLook while it stays the same.
	firstLook = time.Second
	lastLook  = 15 * time.Second
	// lookers is how many engines are examined concurrently, and menders how many are
	// restarted or recovered concurrently.
	lookers = 32
	menders = 32
	// probeAgain is the interval of the probes that confirm a failing check.
	probeAgain = time.Second
)

// Monitor maintains engines without a call, on the leader: it fails those whose process or
// node disappeared, or that report that they are unhealthy, and brings them back. The view
// is only a hint; before it acts, it reads row, allocations and node from the stores
// themselves, and if one does not respond, it does nothing.
type Monitor struct {
	d         Deps
	storm     storm
	stormTold bool // the storm's audit row is up to date

	self  *selfProbes
	looks chan struct{} // one per engine being examined
	mends chan struct{} // one per engine being restarted or recovered
	work  sync.WaitGroup

	mu    sync.Mutex
	cases map[string]*engineCase // by engine_id, of engines that are not as they should be
	asked map[string]bool        // engine_ids to examine, whatever the view shows
}

// New returns a Monitor. It works while Run runs.
func New(d Deps) *Monitor {
	return &Monitor{
		d: d, self: newSelfProbes(), looks: make(chan struct{}, lookers),
		mends: make(chan struct{}, menders), cases: map[string]*engineCase{}, asked: map[string]bool{},
	}
}

// Run maintains engines, while this replica leads, until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	defer m.work.Wait()
	defer m.self.work.Wait()
	for pause.For(ctx, glanceEvery) {
		if !m.d.Engines.Informed() {
			m.stormTold = false // another leader may write or delete the record
			continue
		}
		rows := m.d.Rows.All()
		if err := m.watchStorm(ctx, rows); err != nil && ctx.Err() == nil {
			m.d.Log.Warn("cannot record whether restarts are held back; retrying", "error", err)
		}
		m.forget(rows)
		now := time.Now()
		m.probeUnwatched(ctx, rows, now)
		for _, row := range rows {
			if len(m.looks) == lookers {
				break // the next check finds the others again
			}
			if (m.amiss(row) || m.isAsked(row.EngineID)) && m.take(row.EngineID, now) {
				m.look(ctx, row)
			}
		}
	}
}

// look examines one engine in a separate goroutine. Only Run calls it, after it has seen
// that there is a token.
func (m *Monitor) look(ctx context.Context, row *engine.Row) {
	m.looks <- struct{}{}
	m.work.Go(func() {
		acted, err := m.examine(ctx, row)
		if err != nil && ctx.Err() == nil && !m.d.Engines.Overtaken(err) {
			m.d.Log.Debug("cannot do what an engine needs; retrying", "engine_id", row.EngineID, "error", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		c := m.cases[row.EngineID]
		c.busy = false
		if acted {
			c.wait = 0
		}
		c.wait = min(max(2*c.wait, firstLook), lastLook)
		c.next = time.Now().Add(c.wait)
	})
}

// examine reads the state of an engine, decides, and acts. It holds the token of an
// examination, and releases it before it waits for an engine to come back.
func (m *Monitor) examine(ctx context.Context, seen *engine.Row) (acted bool, err error) {
	free := sync.OnceFunc(func() { <-m.looks })
	defer free()
	at, err := m.observe(ctx, seen)
	if err != nil || at == nil {
		return false, err
	}
	crash := int64(0)
	if at.alloc != nil {
		crash = at.alloc.Crash
	}
	remedy, reason := assess(*at, m.d.Backoff)
	switch remedy {
	case remedyProbe:
		return m.confirm(ctx, at, reason, crash)
	case remedySettle:
		free()
		return true, m.mend(func() error { return m.d.Engines.SettleFrozen(ctx, at.row) })
	case remedyFail:
		return true, m.fail(ctx, at, reason, crash)
	case remedyRecover:
		free()
		return true, m.mend(func() error { return m.d.Engines.Recover(ctx, at.row, crash) })
	case remedyPeek:
		err := m.ask(ctx, boot.Process{URL: at.row.At(at.alloc.Addr), JobID: at.row.JobID(), AllocID: at.alloc.ID}, 1)
		if err == nil {
			free()
			return true, m.mend(func() error { return m.d.Engines.Recover(ctx, at.row, crash) })
		}
		if upstreams(err, m.d.Subsystems) != nil {
			return false, nil // it responds now, and only its dependencies fail
		}
		remedy = due(at.row, at.now, m.d.Backoff)
	}
	switch {
	case remedy == remedyGiveUp && !m.storm.held():
		return true, m.giveUp(ctx, at.row)
	case remedy == remedyRestart, m.storm.held() && (remedy == remedyWait || remedy == remedyGiveUp):
		free()
		return true, m.mend(func() error { return m.tryRestart(ctx, at.row) })
	}
	return false, nil
}

// mend restarts or recovers an engine unless too many are in progress.
func (m *Monitor) mend(do func() error) error {
	select {
	case m.mends <- struct{}{}:
		defer func() { <-m.mends }()
		return do()
	default:
		return nil
	}
}

// tryRestart restarts an engine unless restarts are held back.
func (m *Monitor) tryRestart(ctx context.Context, row *engine.Row) error {
	canary, ok := m.storm.permit(time.Now())
	if !ok {
		return nil
	}
	err := m.d.Engines.Restart(ctx, row, canary)
	if canary {
		m.storm.told(err == nil)
	}
	return err
}

// observe reads the state of an engine from the stores; nil if its row has changed or has
// an operation.
func (m *Monitor) observe(ctx context.Context, seen *engine.Row) (*observation, error) {
	d := m.d
	row, err := d.Store.Engine(ctx, seen.ProductID, seen.UserID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if row.EngineID != seen.EngineID || row.Op != nil {
		return nil, nil
	}
	w := d.Nomad.Watch(row.JobID())
	defer w.Close()
	if err := w.Refresh(ctx); err != nil {
		return nil, err
	}
	at := &observation{row: row, fails: m.fails(row), now: time.Now()}
	if alloc, known := d.Nomad.Newest(row.JobID()); known {
		at.alloc = &alloc
	} else if row.VolumeID != "" {
		known, err := d.Engines.BrainKnown(ctx, row)
		if err != nil {
			return nil, err
		}
		at.lost = !known
	}
	at.vanished = row.AllocID != "" && !d.Nomad.KnowsAlloc(row.JobID(), row.AllocID)
	node, err := d.Nomad.ReadNode(ctx, row.NodeID)
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		at.node = nodeSilent
	case err != nil:
		return nil, err
	case node.Down:
		at.node = nodeSilent
	case !node.Eligible:
		at.node = nodeShut
	}
	return at, nil
}

// ask probes an engine up to times times, and returns nil after one good response, or else
// the last error. If only Consul reports on the engine, one answer is enough, because its
// check has failed repeatedly before.
func (m *Monitor) ask(ctx context.Context, p boot.Process, times int) (err error) {
	var told *boot.Secondhand
	for i := range times {
		if i > 0 && !pause.For(ctx, probeAgain) {
			return ctx.Err()
		}
		if err = m.d.Detector.Health(ctx, p); err == nil || errors.As(err, &told) {
			return err
		}
	}
	return err
}
