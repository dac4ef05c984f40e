package idle

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/registry"
)

// The model runs the code with which replicas record admits (activity) and leaders judge
// engines (feed) against a registry in memory, in small steps in any order: with
// replicas that pause, lose their session and return, flushes that are lost, whose response
// is lost, or that are written late, several replicas that all believe that they lead, and
// an idle timeout of zero.
type model struct {
	pick  func(n int) int
	rules rules

	now      time.Duration
	index    uint64
	row      modelRow
	sessions map[string]*modelSession
	flushes  map[string]map[uint64]*registry.Flush // by session, by slot
	replicas []*modelReplica
	admits   []*modelAdmit
	floating []*modelFlush // sent, may never arrive
	births   int

	acts, served int
	lastServed   time.Duration
	slept        int
	wrong        string
}

// rules are the rules that the model can break on request.
type rules struct {
	settled   func(m *model, f *feed, engine, index uint64) bool
	unfenced  bool // an admit is granted even after the loss of the session
	lookLate  bool // the session of an admit is the one at its end
	ignoreNew bool // admits do not remove a mark
	noFloor   bool // a replica that is gone raises no floor
}

type modelRow struct {
	index   uint64
	pending bool
	asleep  bool
}

type modelSession struct {
	replica string
	renewed time.Duration // in Consul
	born    uint64
}

type modelReplica struct {
	id       string
	activity *Activity
	session  string
	renewed  time.Duration
	paused   bool
	sending  *modelFlush
	feed     *feed
	attempts []*modelAttempt
}

type modelFlush struct {
	*registry.Flush
	session string
	done    bool
}

type modelAttempt struct {
	index uint64
	used  time.Time
	began time.Duration
	count int // of admits granted then
}

type modelAdmit struct {
	at    *modelReplica
	visit *Visit
	row   modelRow
	next  func(*model, *modelAdmit)
}

const (
	modelEngine = 42
	modelTTL    = 10 * time.Second
)

func newModel(pick func(int) int, r rules) *model {
	if r.settled == nil {
		r.settled = func(_ *model, f *feed, engine, index uint64) bool { return f.settled(engine, index) }
	}
	m := &model{pick: pick, rules: r, sessions: map[string]*modelSession{}, flushes: map[string]map[uint64]*registry.Flush{}}
	for i := range 2 + pick(2) {
		m.replicas = append(m.replicas, m.newReplica(fmt.Sprint("r", i)))
	}
	return m
}

func (m *model) newReplica(id string) *modelReplica {
	r := &modelReplica{id: id, feed: newFeed()}
	r.activity = NewActivity(func() string {
		if m.now-r.renewed > modelTTL {
			return ""
		}
		return r.session
	})
	return r
}

func (m *model) time() time.Time { return time.Unix(0, 0).Add(m.now) }

func (m *model) write() uint64 { m.index++; return m.index }

// step takes one possible step.
func (m *model) step() {
	m.acts++
	m.now += time.Duration(m.pick(30)) * time.Millisecond
	r := m.replicas[m.pick(len(m.replicas))]
	switch act := m.pick(32); {
	case act == 0:
		m.now += time.Duration(m.pick(4000)) * time.Millisecond
	case act == 1:
		r.paused = !r.paused
	case act == 2:
		m.expire()
	case act == 3 && m.row.asleep && m.pick(4) == 0: // woken by an operation
		m.row = modelRow{index: m.write()}
	case act == 4 && len(m.floating) > 0:
		m.arrive(m.floating[m.pick(len(m.floating))])
	case r.paused:
	case act == 5:
		m.renew(r)
	case act == 6 && len(m.admits) < 4:
		v := r.activity.Enter(modelEngine)
		m.admits = append(m.admits, &modelAdmit{at: r, visit: v, next: (*model).admitLooks})
	case act < 13 && len(m.admits) > 0:
		m.admitOn(m.admits[m.pick(len(m.admits))])
	case act < 26:
		m.flush(r)
	case act < 28:
		r = m.replicas[m.pick(8)/7] // the first leads, the second believes that it does
		r.feed.observe(m.view(), m.time())
		if m.rules.noFloor {
			r.feed.floor = time.Time{}
		}
	case act < 29 && (!m.row.pending || m.pick(8) == 0): // others wait for the end of a mark
		m.mark(m.replicas[m.pick(8)/7])
	default:
		m.settle(m.replicas[m.pick(8)/7])
	}
}

func (m *model) admitOn(a *modelAdmit) {
	if !a.at.paused {
		a.next(m, a)
	}
	for i, other := range m.admits {
		if other == a && a.next == nil {
			m.admits = append(m.admits[:i], m.admits[i+1:]...)
		}
	}
}

func (m *model) admitLooks(a *modelAdmit) {
	a.visit.Look()
	a.next = (*model).admitReads
}

func (m *model) admitReads(a *modelAdmit) {
	a.row = m.row
	switch {
	case a.row.asleep:
		m.admitLeaves(a) // denied
	case a.row.pending && !m.rules.ignoreNew:
		a.next = (*model).admitClears
	default:
		a.next = (*model).admitServes
	}
}

func (m *model) admitClears(a *modelAdmit) {
	if s := m.sessions[a.at.session]; s == nil || m.row.index != a.row.index {
		a.next = (*model).admitLooks
		return
	}
	m.row = modelRow{index: m.write()}
	a.row, a.next = m.row, (*model).admitServes
}

func (m *model) admitServes(a *modelAdmit) {
	if m.rules.lookLate {
		a.visit.Look()
	}
	switch {
	case a.visit.Serve() || m.rules.unfenced:
		if m.row.asleep {
			m.wrong = "an admit was granted on an engine that was put to sleep before"
		}
		m.served++
		m.lastServed = m.now
	case a.at.activity.session() != "":
		a.next = (*model).admitLooks
		return
	}
	a.next = (*model).admitLeaves
}

func (m *model) admitLeaves(a *modelAdmit) {
	a.visit.Leave()
	a.next = nil
}

// renew renews a replica's session, or gives it a new one.
func (m *model) renew(r *modelReplica) {
	if s := m.sessions[r.session]; s != nil {
		s.renewed, r.renewed = m.now, m.now
		return
	}
	m.births++
	r.session, r.renewed = fmt.Sprint("session", m.births), m.now
	m.sessions[r.session] = &modelSession{replica: r.id, renewed: m.now, born: m.write()}
	m.flushes[r.session] = map[uint64]*registry.Flush{}
}

// expire ends a session that was not renewed within its TTL, if there is one.
func (m *model) expire() {
	for _, r := range m.replicas {
		if s := m.sessions[r.session]; s != nil && m.now-s.renewed > modelTTL {
			delete(m.sessions, r.session)
			delete(m.flushes, r.session)
			m.write()
			return
		}
	}
}

// flush takes a snapshot, or continues with the current one.
func (m *model) flush(r *modelReplica) {
	if r.sending == nil {
		if r.activity.session() != "" {
			r.sending = &modelFlush{Flush: r.activity.snapshot(), session: r.session}
			m.floating = append(m.floating, r.sending)
		}
		return
	}
	f := r.sending
	switch m.pick(8) {
	case 0: // given up; it may still arrive
		r.sending = nil
	case 1: // lost
		f.done, r.sending = true, nil
	default:
		m.arrive(f)
		if f.Index > 0 {
			r.activity.wrote(f.Flush)
		}
		r.sending = nil
	}
}

// arrive writes a flush, if it is still in transit and its session is valid.
func (m *model) arrive(f *modelFlush) {
	if !f.done && m.flushes[f.session] != nil {
		f.Index = m.write()
		stored := *f.Flush
		m.flushes[f.session][f.Seq%8] = &stored
	}
	f.done = true
	for i, other := range m.floating {
		if other == f {
			m.floating = append(m.floating[:i], m.floating[i+1:]...)
			break
		}
	}
}

func (m *model) view() *registry.Activity {
	view := &registry.Activity{Replicas: map[string]uint64{}, Flushes: map[string][]*registry.Flush{}}
	for id, s := range m.sessions {
		view.Replicas[s.replica] = s.born
		newest := uint64(0)
		for _, f := range m.flushes[id] {
			newest = max(newest, f.Seq)
		}
		for seq := uint64(0); seq <= newest; seq++ {
			if f := m.flushes[id][seq%8]; f != nil && f.Seq == seq {
				view.Flushes[s.replica] = append(view.Flushes[s.replica], f)
			}
		}
	}
	return view
}

// mark proposes sleep. Only the session is checked, not the lead.
func (m *model) mark(r *modelReplica) {
	if m.row.asleep || m.sessions[r.session] == nil || r.feed.at.IsZero() {
		return
	}
	a := &modelAttempt{used: r.feed.lastUsed(modelEngine), began: m.now, count: m.served}
	a.index = m.write()
	m.row = modelRow{index: a.index, pending: true}
	r.attempts = append(r.attempts, a)
}

func (m *model) settle(r *modelReplica) {
	for i, a := range r.attempts {
		verdict := undecided
		switch {
		case r.feed.lastUsed(modelEngine).After(a.used):
			verdict = inUse
		case m.rules.settled(m, r.feed, modelEngine, a.index):
			verdict = asleep
		}
		if verdict == undecided {
			continue
		}
		r.attempts = append(r.attempts[:i], r.attempts[i+1:]...)
		if verdict == asleep && m.row.index == a.index && m.sessions[r.session] != nil {
			if m.served > a.count {
				m.wrong = "an engine was put to sleep that was in use after it was marked"
			}
			if m.served > 0 && r.feed.lastUsed(modelEngine).Before(time.Unix(0, 0).Add(m.lastServed)) {
				m.wrong = "an engine was put to sleep by a leader that does not know of its last use"
			}
			m.row = modelRow{index: m.write(), asleep: true}
			m.slept++
		}
		return
	}
}

// rest lets all admits end and allows no new ones: the engine must be put to sleep,
// whichever replica leads, after that replica has had a quiet period.
func (m *model) rest() {
	for _, r := range m.replicas {
		r.paused = false
	}
	m.now += 2 * modelTTL // replicas that did not renew are gone
	for range m.replicas {
		m.expire()
	}
	for _, r := range m.replicas {
		m.renew(r)
	}
	for range 100 {
		for _, a := range append([]*modelAdmit(nil), m.admits...) {
			m.admitOn(a)
		}
	}
	leader := m.replicas[m.pick(len(m.replicas))]
	leader.attempts = nil
	for range 12 {
		m.now += flushEvery
		for _, r := range m.replicas {
			m.renew(r)
			for r.sending != nil {
				m.flush(r)
			}
			r.sending = &modelFlush{Flush: r.activity.snapshot(), session: r.session}
			m.arrive(r.sending)
			if r.sending.Index > 0 {
				r.activity.wrote(r.sending.Flush)
			}
			r.sending = nil
		}
		leader.feed.observe(m.view(), m.time())
		if len(leader.attempts) == 0 {
			m.mark(leader)
		} else {
			m.settle(leader)
		}
	}
	if !m.row.asleep && m.wrong == "" {
		m.wrong = "an idle engine is not put to sleep"
	}
}

// run takes a number of steps and then rests, until an error occurs.
func (m *model) run(steps int) string {
	for range steps {
		if m.step(); m.wrong != "" {
			return m.wrong
		}
	}
	m.rest()
	return m.wrong
}

// For every interleaving: no admit is granted on an engine whose sleep was committed
// before, no use is missed, and every idle engine is asleep in the end.
func TestSleepModel(t *testing.T) {
	t.Run("Random", func(t *testing.T) {
		slept, served := 0, 0
		for seed := range uint64(modelRuns) {
			m := newModel(rand.New(rand.NewPCG(seed, 0)).IntN, rules{})
			if wrong := m.run(300); wrong != "" {
				t.Fatalf("seed %d, act %d: %s", seed, m.acts, wrong)
			}
			slept, served = slept+m.slept, served+m.served
		}
		t.Logf("%d runs: %d admits granted, put to sleep %d times", modelRuns, served, slept)
	})
	t.Run("Rapid", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			tape := rapid.SliceOfN(rapid.Byte(), 0, 1000).Draw(t, "tape")
			m := newModel(func(n int) int {
				if len(tape) == 0 {
					return 0
				}
				next := int(tape[0])
				tape = tape[1:]
				return next % n
			}, rules{})
			if wrong := m.run(150); wrong != "" {
				t.Fatal(wrong)
			}
		})
	})
}

const modelRuns = 3000

// The model finds the errors of a protocol that lacks one of the rules.
func TestSleepModelFindsMistakes(t *testing.T) {
	for name, r := range map[string]rules{
		"OneFlushIsEnough": {settled: func(m *model, f *feed, engine, index uint64) bool {
			return f.each(func(t *teller) bool {
				since, flying := t.flying[engine]
				return m.flushedAt(t) > index && (!flying || since > index)
			})
		}},
		"AdmitsUnderWayDoNotCount": {settled: func(_ *model, f *feed, _, index uint64) bool {
			return f.each(func(t *teller) bool { return t.seen > index })
		}},
		"ReplicasThatDidNotTellDoNotCount": {settled: func(_ *model, f *feed, engine, index uint64) bool {
			return f.each(func(t *teller) bool {
				since, flying := t.flying[engine]
				return t.seq == 0 || t.seen > index && (!flying || since > index)
			})
		}},
		"AReplicaWithoutASessionAnswers":  {unfenced: true},
		"TheSessionOfTheEndCounts":        {lookLate: true},
		"AMarkIsNotTakenAway":             {ignoreNew: true},
		"WhatAGoneReplicaKnewIsNotMissed": {noFloor: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(50 * modelRuns) {
				m := newModel(rand.New(rand.NewPCG(seed, 0)).IntN, r)
				if wrong := m.run(300); wrong != "" {
					t.Logf("seed %d, act %d: %s", seed, m.acts, wrong)
					return
				}
			}
			t.Error("nothing is found to be wrong")
		})
	}
}

// each reports whether ok holds for every replica and there is at least one.
func (f *feed) each(ok func(*teller) bool) bool {
	for _, t := range f.replicas {
		if !ok(t) {
			return false
		}
	}
	return len(f.replicas) > 0
}

// flushedAt returns the index of the last flush of a replica that a leader has read.
func (m *model) flushedAt(t *teller) uint64 {
	for id, s := range m.sessions {
		if f := m.flushes[id][t.seq%8]; s.born == t.born && f != nil && f.Seq == t.seq {
			return f.Index
		}
	}
	return 0
}
