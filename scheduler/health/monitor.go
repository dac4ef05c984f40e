package health

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

const (
	// glanceEvery is how often the leader looks over all engines in the view: a
	// crash is told by the node within 200 ms, and seen in under 2 s (SPEC
	// section 8). A glance costs no call.
	glanceEvery = 500 * time.Millisecond
	// lookAgain is how long a look at the stores is good for: firstLook while an
	// engine's case changes, up to lastLook while it stays.
	firstLook = time.Second
	lastLook  = 15 * time.Second
	// lookers is how many engines are looked at, and menders how many are brought
	// back, at a time.
	lookers = 32
	menders = 32
	// probeAgain is between the probes that confirm a failing check.
	probeAgain = time.Second
)

// Deps are what the monitor works with.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Nomad   Nomad
	Checks  Checks
	Engines Engines
	Backoff engine.Backoff
	// MaxFailures is how many probes in a row confirm that an engine fails, ProbeTimeout
	// what each may take, and CheckEvery the time between two of an engine whose check
	// nobody runs.
	MaxFailures              int
	ProbeTimeout, CheckEvery time.Duration
	// Subsystems are globs of those in an engine's /health that a restart may mend.
	Subsystems []string
}

// Store is the registry: rows, and the note of a storm.
type Store interface {
	Engine(ctx context.Context, productID, userID string) (*registry.Engine, error)
	Storm(ctx context.Context) (*registry.Storm, error)
	PutStorm(ctx context.Context, s *registry.Storm) error
	DeleteStorm(ctx context.Context, s *registry.Storm) error
	DeleteUnreadable(ctx context.Context, u *registry.Unreadable) error
}

// Rows is the view of the rows.
type Rows interface {
	All() []*registry.Engine
}

// Nomad is the view of allocations, and Nomad's own word of them.
type Nomad interface {
	Newest(jobID string) (cluster.Alloc, bool)
	KnowsAlloc(jobID, allocID string) bool
	Watch(jobID string) *cluster.Watch
	ReadNode(ctx context.Context, id string) (*cluster.Node, error)
}

// Checks is how the engines' checks in Consul stand.
type Checks interface {
	Of(row *registry.Engine) (registry.Standing, time.Time)
	AgentDead(row *registry.Engine) bool
}

// Engines is what is known of engines besides, and what is done to them.
type Engines interface {
	// Informed says whether this replica leads and its view is fit to act upon.
	Informed() bool
	// nodeSilent says whether the servers do not hear from a node.
	NodeSilent(nodeID string) bool
	// BrainKnown says whether Nomad knows the engine's volume.
	BrainKnown(ctx context.Context, row *registry.Engine) (bool, error)
	// NoteUnproven notes in the row an allocation whose end nobody has proved.
	NoteUnproven(row *registry.Engine, alloc cluster.Alloc)
	// GoOn has a process go on that may be frozen.
	GoOn(ctx context.Context, row *registry.Engine)
	// SettleFrozen ends the process of an engine that sleeps, which is not the one that
	// was frozen.
	SettleFrozen(ctx context.Context, row *registry.Engine) error
	// Restart gives a failed engine a new process, and Recover takes the one that it has
	// for running again; they wait for how that ends.
	Restart(ctx context.Context, row *registry.Engine, canary bool) error
	Recover(ctx context.Context, row *registry.Engine, crash int64) error
	// Update writes a row that the service itself changed, with an audit row.
	Update(ctx context.Context, row *registry.Engine, action string, details map[string]any) error
	// Begin and Complete write the two halves of an audit row that is of no engine.
	Begin(ctx context.Context, action string, details map[string]any) (auditID int64, err error)
	Complete(ctx context.Context, auditID int64, took time.Duration)
	// Overtaken says whether an error means that another call was faster.
	Overtaken(err error) bool
}

// Monitor is how the leader looks after engines that nobody asked about: it
// fails those whose process or node is gone, or which say that they are not
// healthy, and brings them back. What it sees in the view is a hint; before it
// acts it reads row, allocations and node from the stores themselves, and where
// one does not answer it does nothing.
type Monitor struct {
	d         Deps
	probe     *boot.Prober // with time to reach an engine that is slow, not gone
	storm     storm
	stormTold bool // the storm's audit row agrees with it

	self  *selfProbes
	looks chan struct{} // one token per engine looked at
	mends chan struct{} // one per engine being brought back
	work  sync.WaitGroup

	mu    sync.Mutex
	cases map[string]*engineCase // by engine_id, of engines that are not as they should be
	asked map[string]bool        // engine_ids to be looked at, whatever the view shows
}

// engineCase is the memory of looking at one engine.
type engineCase struct {
	busy bool // it is being looked at
	next time.Time
	wait time.Duration
}

// New returns a monitor; Run makes it work.
func New(d Deps) *Monitor {
	return &Monitor{
		d: d, probe: boot.NewProber(d.ProbeTimeout), self: newSelfProbes(), looks: make(chan struct{}, lookers),
		mends: make(chan struct{}, menders), cases: map[string]*engineCase{}, asked: map[string]bool{},
	}
}

// Run looks after engines, while this replica leads, until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	defer m.work.Wait()
	defer m.self.work.Wait()
	for pause.For(ctx, glanceEvery) {
		if !m.d.Engines.Informed() {
			m.stormTold = false // another leader may write or remove the note
			continue
		}
		rows := m.d.Rows.All()
		if err := m.watchStorm(ctx, rows); err != nil && ctx.Err() == nil {
			m.d.Log.Warn("cannot note whether restarts are held back; trying again", "error", err)
		}
		m.forget(rows)
		now := time.Now()
		m.probeUnwatched(ctx, rows, now)
		for _, row := range rows {
			if len(m.looks) == lookers {
				break // the others are still amiss at the next glance
			}
			if (m.amiss(row) || m.isAsked(row.EngineID)) && m.take(row.EngineID, now) {
				m.look(ctx, row)
			}
		}
	}
}

// amiss says whether the view shows an engine that needs a look at the stores.
func (m *Monitor) amiss(row *registry.Engine) bool {
	if row.Op != nil {
		return false
	}
	if row.State == registry.Sleeping && row.Frozen != nil {
		alloc, known := m.d.Nomad.Newest(row.JobID())
		return !m.d.Engines.NodeSilent(row.NodeID) && !(known && boot.SameProcess(row.Frozen, row, &alloc))
	}
	if row.Desired != registry.Running {
		return false
	}
	if row.State == registry.Failed {
		return row.ProductID != registry.WarmProduct // which is replaced
	}
	if row.State != registry.Running {
		return false
	}
	alloc, known := m.d.Nomad.Newest(row.JobID())
	return !known || alloc.Terminal() || alloc.Desired != api.AllocDesiredStatusRun || alloc.Client == api.AllocClientStatusUnknown ||
		alloc.ID != row.AllocID || alloc.Crash > row.Crash || m.d.Engines.NodeSilent(row.NodeID) || m.fails(row) || row.Reason != ""
}

// take says whether an engine is due for a look, and reserves it.
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

// Held says whether restarts are held back.
func (m *Monitor) Held() bool { return m.storm.held() }

// Hurry has an engine looked at with the next glance, whatever the view shows: it is a
// hint, and somebody saw otherwise.
func (m *Monitor) Hurry(engineID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked[engineID] = true
	if c := m.cases[engineID]; c != nil && !c.busy {
		delete(m.cases, engineID)
	}
}

// forget drops the memory of engines that are gone or as they should be.
func (m *Monitor) forget(rows []*registry.Engine) {
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

// look looks at one engine in a goroutine of its own. Only run calls it, and has
// seen that there is a token.
func (m *Monitor) look(ctx context.Context, row *registry.Engine) {
	m.looks <- struct{}{}
	m.work.Go(func() {
		acted, err := m.examine(ctx, row)
		if err != nil && ctx.Err() == nil && !m.d.Engines.Overtaken(err) {
			m.d.Log.Debug("an engine that needs care did not get it; trying again", "engine_id", row.EngineID, "error", err)
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

// examine reads what there is of an engine, decides, and acts. It holds a look's
// token, which it gives back before it waits for an engine to come back.
func (m *Monitor) examine(ctx context.Context, seen *registry.Engine) (acted bool, err error) {
	free := sync.OnceFunc(func() { <-m.looks })
	defer free()
	at, err := m.sight(ctx, seen)
	if err != nil || at == nil {
		return false, err
	}
	crash := int64(0)
	if at.alloc != nil {
		crash = at.alloc.Crash
	}
	care, reason := assess(*at, m.d.Backoff)
	switch care {
	case careProbe:
		return m.confirm(ctx, at, reason, crash)
	case careSettle:
		free()
		return true, m.mend(func() error { return m.d.Engines.SettleFrozen(ctx, at.row) })
	case careFail:
		return true, m.fail(ctx, at, reason, crash)
	case careRecover:
		free()
		return true, m.mend(func() error { return m.d.Engines.Recover(ctx, at.row, crash) })
	case carePeek:
		err := m.ask(ctx, "http://"+at.alloc.Addr, 1)
		if err == nil {
			free()
			return true, m.mend(func() error { return m.d.Engines.Recover(ctx, at.row, crash) })
		}
		if upstreams(err, m.d.Subsystems) != nil {
			return false, nil // it answers by now, and what it depends on does not
		}
		care = due(at.row, at.now, m.d.Backoff)
	}
	switch {
	case care == careGiveUp && !m.storm.held():
		return true, m.giveUp(ctx, at.row)
	case care == careRestart, m.storm.held() && (care == careWait || care == careGiveUp):
		free()
		return true, m.mend(func() error { return m.tryRestart(ctx, at.row) })
	}
	return false, nil
}

// mend brings an engine back if there is room for one more, else soon.
func (m *Monitor) mend(do func() error) error {
	select {
	case m.mends <- struct{}{}:
		defer func() { <-m.mends }()
		return do()
	default:
		return nil
	}
}

// tryRestart restarts an engine unless a storm forbids it.
func (m *Monitor) tryRestart(ctx context.Context, row *registry.Engine) error {
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

// sight reads what there is of an engine from the stores; nil when its row is
// another's or busy by now.
func (m *Monitor) sight(ctx context.Context, seen *registry.Engine) (*sight, error) {
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
	at := &sight{row: row, fails: m.fails(row), now: time.Now()}
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

// ask asks an engine itself, up to so many times, and returns nil or how it failed last;
// one good answer is enough.
func (m *Monitor) ask(ctx context.Context, url string, times int) (err error) {
	for i := range times {
		if i > 0 && !pause.For(ctx, probeAgain) {
			return ctx.Err()
		}
		if err = m.probe.Health(ctx, url); err == nil {
			return nil
		}
	}
	return err
}
