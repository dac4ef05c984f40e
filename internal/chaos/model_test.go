package chaos

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// This is a model of the life of one user's engine as docs/api.md and docs/guarantees.md
// specify it, for porcupine: is there an order of the calls, each at one moment between its
// invocation and its return, in which every response is true?
//
// The effect of a change may be visible before its response: others can see a provision in
// progress. So a change is two events. From its invocation on it *may* take effect, as a
// background move of the state; its response says whether it did. A call without a definite
// response may take effect once at any later time. What the service does by itself (notice
// a crash, restart, put to sleep) is a background move too. A state of the checker is the
// set of all states that the responses so far allow.

// phase is the phase of an engine's life.
type phase byte

const (
	none phase = iota
	booting
	running
	dozing // it is being put to sleep: its row may still be running
	sleeping
	failed
	stopping // a stop is in progress: its row still has the previous state
	stopped
	destroying
)

var phaseNames = []string{"none", "booting", "running", "dozing", "sleeping", "failed", "stopping", "stopped", "destroying"}

func (p phase) String() string { return phaseNames[p] }

// stage is the progress of a call that may change something.
type stage byte

const (
	waiting stage = iota // it may take effect
	begun                // it is taking effect
	done                 // it took effect
)

// pending is a call that may change something and has no response yet.
type pending struct {
	call  int16 // its number among the user's calls; -1: one of the lost ones
	kind  byte  // index of kinds
	stage stage
	id    int16 // for finished destroys: the destroyed engine
}

var kinds = []kind{provision, start, stop, rotate, destroy, admit}

// life is one state. Ids and keys are numbers, 0: unknown.
type life struct {
	phase, from phase // from: the phase before a boot or a stop
	id, key     int16
	pend        string // pending calls, sorted
	lost        lost
	old         string // keys that were valid once
	gone        string // ids that are destroyed
}

// lost counts the calls of each kind without a definite response that may still take
// effect, each once.
type lost [6]uint8

// covers reports whether everything that can still happen with b can happen with a.
func (a lost) covers(b lost) bool {
	for i := range a {
		if a[i] < b[i] {
			return false
		}
	}
	return true
}

const pendSize = 6

func (l *life) pending() []pending {
	list := make([]pending, 0, len(l.pend)/pendSize)
	for i := 0; i < len(l.pend); i += pendSize {
		b := []byte(l.pend[i : i+pendSize])
		list = append(list, pending{int16(binary.BigEndian.Uint16(b)), b[2], stage(b[3]), int16(binary.BigEndian.Uint16(b[4:]))})
	}
	return list
}

func (l *life) setPending(list []pending) {
	slices.SortFunc(list, func(a, b pending) int {
		return cmp.Or(cmp.Compare(a.call, b.call), cmp.Compare(a.kind, b.kind), cmp.Compare(a.stage, b.stage), cmp.Compare(a.id, b.id))
	})
	b := make([]byte, 0, len(list)*pendSize)
	for _, p := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(p.call))
		b = append(b, p.kind, byte(p.stage))
		b = binary.BigEndian.AppendUint16(b, uint16(p.id))
	}
	l.pend = string(b)
}

// without returns the state without one of its pending calls.
func (l life) without(i int) life {
	l.setPending(slices.Delete(l.pending(), i, i+1))
	return l
}

// with returns the state in which a waiting call has reached a stage. A lost call is
// removed then.
func (l life) with(i int, p pending, s stage) life {
	if p.call < 0 {
		l.lost[p.kind]--
		return l
	}
	list := l.pending()
	list[i].stage = s
	l.setPending(list)
	return l
}

// find returns the position of a call among the pending ones; -1: it is not pending.
func (l *life) find(call int16) (int, pending) {
	for i, p := range l.pending() {
		if p.call == call {
			return i, p
		}
	}
	return -1, pending{}
}

func has(list string, n int16) bool { return strings.Contains(list, string(numbered(n))) }

func numbered(n int16) []byte { return []byte{'#', byte(n >> 8), byte(n), ';'} }

// forget returns the state after the engine was removed.
func (l life) forget() life {
	if l.id != 0 {
		l.gone += string(numbered(l.id))
	}
	if l.key != 0 && !has(l.old, l.key) {
		l.old += string(numbered(l.key))
	}
	l.phase, l.from, l.id, l.key = none, none, 0, 0
	return l
}

// user is what is known about one user's calls. It maps ids and keys to numbers.
type user struct {
	calls     []*call
	ids, keys map[string]int16
}

func newUser(calls []*call) *user {
	u := &user{calls: calls, ids: map[string]int16{}, keys: map[string]int16{}}
	for _, c := range calls {
		for _, word := range []struct {
			text string
			all  map[string]int16
		}{{c.answer.engineID, u.ids}, {c.answer.key, u.keys}} {
			if word.text != "" && word.all[word.text] == 0 {
				word.all[word.text] = int16(len(word.all) + 1)
			}
		}
	}
	return u
}

func (u *user) id(c *call) int16  { return u.ids[c.answer.engineID] }
func (u *user) key(c *call) int16 { return u.keys[c.answer.key] }

// rotated says whether a rotation was called before a call ended.
func (u *user) rotated(c *call) bool {
	return slices.ContainsFunc(u.calls, func(r *call) bool { return r.kind == rotate && r.invoked < c.returned })
}

// moves returns the states after one background move.
func (u *user) moves(l life) []life {
	var next []life
	to := func(p, from phase) life { n := l; n.phase, n.from = p, from; return n }
	switch l.phase {
	case booting:
		if l.from == none {
			// A provision that left nothing behind; until it ends, its id may change.
			next = append(next, to(running, none), to(failed, none), to(destroying, none))
		} else {
			next = append(next, to(running, none), to(failed, none), to(l.from, none))
		}
	case running:
		next = append(next, to(failed, none), to(dozing, running))
	case dozing:
		next = append(next, to(sleeping, none))
	case failed:
		next = append(next, to(booting, failed)) // restarted by the service
	case stopping:
		n := to(stopped, none)
		n.finish(stop, 0)
		next = append(next, n)
	case destroying:
		n := l.forget()
		n.finish(destroy, l.id)
		next = append(next, n)
	}
	for i, p := range l.pending() {
		if p.stage == waiting {
			next = append(next, u.effects(l, i, p)...)
		}
	}
	for k, n := range l.lost {
		if n > 0 {
			next = append(next, u.effects(l, -1, pending{call: -1, kind: byte(k)})...)
		}
	}
	return next
}

// finish marks the begun calls of a kind as done.
func (l *life) finish(k kind, id int16) {
	list := l.pending()
	for i := range list {
		if kinds[list[i].kind] == k && list[i].stage == begun {
			list[i].stage, list[i].id = done, id
		}
	}
	l.setPending(list)
}

// effects returns the states after a waiting call begins to take effect.
func (u *user) effects(l life, i int, p pending) []life {
	var c *call
	if p.call >= 0 {
		c = u.calls[p.call]
	}
	move := func(s stage, ph, from phase) life { n := l.with(i, p, s); n.phase, n.from = ph, from; return n }
	k := kinds[p.kind]
	switch {
	case k == provision && l.phase == none:
		n := move(begun, booting, none)
		if c != nil {
			n.id, n.key = u.id(c), u.key(c)
		}
		return []life{n}
	case k == start && (l.phase == stopped || l.phase == sleeping || l.phase == failed):
		return []life{move(begun, booting, l.phase)}
	case k == start && l.phase == booting && l.from != none,
		k == stop && l.phase == stopping,
		k == destroy && l.phase == destroying:
		return []life{l.with(i, p, begun)} // it joins the other call
	case k == stop && (l.phase == running || l.phase == sleeping || l.phase == failed):
		return []life{move(begun, stopping, l.phase)}
	case k == destroy && l.phase != none:
		if c != nil && c.answer.ok() {
			if l.id != 0 && l.id != u.id(c) && !(l.phase == booting && l.from == none) {
				return nil
			}
			l.id = u.id(c)
		}
		return []life{move(begun, destroying, none)}
	case k == rotate && l.phase == running:
		n := l.with(i, p, done)
		if n.key != 0 {
			n.old += string(numbered(n.key))
		}
		n.key = 0
		if c != nil {
			n.key = u.key(c)
		}
		return []life{n}
	case k == admit:
		// It retries while its caller waits, so it stays.
		var next []life
		stay := func(ph, from phase) life {
			n := l
			if c == nil {
				n = l.with(i, p, begun)
			}
			n.phase, n.from = ph, from
			return n
		}
		if l.phase == none && (c == nil || c.autoProvision) {
			next = append(next, stay(booting, none))
		}
		if l.phase == sleeping && (c == nil || c.autoWake) {
			next = append(next, stay(booting, sleeping))
		}
		return next
	}
	return nil
}

// closure returns all states that background moves can reach, including the given ones,
// without those that another one covers.
func (u *user) closure(from []life) []life {
	var c cover
	queue := slices.Clone(from)
	slices.SortFunc(queue, func(a, b life) int { return b.lost.total() - a.lost.total() })
	queue = slices.DeleteFunc(queue, func(l life) bool { return !c.add(l) })
	for i := 0; i < len(queue); i++ {
		for _, n := range u.moves(queue[i]) {
			if c.add(n) {
				queue = append(queue, n)
			}
		}
	}
	return queue
}

func (a lost) total() (n int) {
	for _, x := range a {
		n += int(x)
	}
	return n
}

// cover is a set of states without those that are equal to another one, except that less
// can still happen.
type cover map[life][]lost

// add reports whether a state is new.
func (c *cover) add(l life) bool {
	if *c == nil {
		*c = cover{}
	}
	has := l.lost
	l.lost = lost{}
	for _, other := range (*c)[l] {
		if other.covers(has) {
			return false
		}
	}
	(*c)[l] = append(slices.DeleteFunc((*c)[l], has.covers), has)
	return true
}

// event is what porcupine orders: the beginning of a call, its response, or its loss.
type event struct {
	call int16
	what byte // 'b', 'a' or 'l'
}

// step returns the states after an event, or none if the event is impossible.
func (u *user) step(states []life, e event) []life {
	c := u.calls[e.call]
	var next []life
	switch e.what {
	case 'b':
		for _, l := range states {
			l.setPending(append(l.pending(), pending{call: e.call, kind: byte(slices.Index(kinds, c.kind))}))
			next = append(next, l)
		}
	case 'l':
		for _, l := range states {
			i, p := l.find(e.call)
			if p.stage != waiting {
				next = append(next, l.without(i))
				continue
			}
			l = l.without(i)
			l.lost[p.kind]++
			next = append(next, l)
		}
	case 'a':
		for _, l := range u.closure(states) {
			if n, ok := u.answered(l, e.call, c); ok {
				next = append(next, n)
			}
		}
	}
	return unique(next)
}

// unique sorts states and removes those that others cover.
func unique(states []life) []life {
	var c cover
	for _, l := range states {
		c.add(l)
	}
	states = states[:0]
	for l, all := range c {
		for _, l.lost = range all {
			states = append(states, l)
		}
	}
	slices.SortFunc(states, compareLife)
	return states
}

func compareLife(a, b life) int {
	return cmp.Or(cmp.Compare(a.phase, b.phase), cmp.Compare(a.from, b.from), cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key),
		strings.Compare(a.pend, b.pend), slices.Compare(a.lost[:], b.lost[:]), strings.Compare(a.old, b.old), strings.Compare(a.gone, b.gone))
}

// answered reports whether a call can have its response in a state, and returns the state
// after it.
func (u *user) answered(l life, number int16, c *call) (life, bool) {
	if c.kind == get {
		return u.seen(l, c)
	}
	i, p := l.find(number)
	if i < 0 {
		return l, false
	}
	rest := l.without(i)
	is := func(phases ...phase) bool { return slices.Contains(phases, l.phase) }
	if c.answer.ok() {
		switch c.kind {
		case provision:
			return rest, p.stage == begun && l.phase == running && l.id == u.id(c) && l.key == u.key(c)
		case start:
			return rest, p.stage == begun && l.phase == running
		case stop:
			return rest, p.stage == done
		case destroy:
			return rest, p.stage == done && (p.id == 0 || p.id == u.id(c))
		case rotate:
			return rest, p.stage == done
		}
		switch c.answer.denial {
		case "":
			l.pend = rest.pend
			return u.shown(l, c, running)
		case "engine_not_found":
			return rest, is(none)
		case "engine_sleeping":
			return rest, is(sleeping, dozing)
		case "engine_stopped":
			return rest, is(stopped, stopping)
		case "engine_provisioning":
			return rest, is(booting)
		case "engine_unhealthy":
			return rest, is(failed)
		case "engine_destroying":
			return rest, is(destroying)
		}
		return rest, false
	}
	if c.kind == admit {
		return rest, true // an error guarantees nothing about the state
	}
	switch c.answer.code {
	case "ENGINE_BUSY": // or it was interrupted by a destroy
		return rest, true
	case "RATE_LIMITED":
		return rest, p.stage == waiting
	case "ENGINE_NOT_FOUND":
		return rest, p.stage == waiting && is(none)
	case "ENGINE_ALREADY_EXISTS":
		return rest, p.stage == waiting && !is(none)
	case "ENGINE_ALREADY_RUNNING":
		return rest, p.stage == waiting && is(running)
	case "ENGINE_NOT_RUNNING":
		if c.kind == stop {
			return rest, p.stage == waiting && is(stopped)
		}
		return rest, p.stage == waiting && is(stopped, sleeping, failed)
	case "QUOTA_EXCEEDED":
		return rest, p.stage == waiting && is(none)
	case "PORT_EXHAUSTION", "CAPACITY_EXHAUSTED":
		if c.kind == provision { // the rest may still be removed
			return rest, p.stage == waiting || is(none, destroying) || is(booting) && l.from == none
		}
		return rest, true
	case "ENGINE_BOOT_FAILED", "BOOT_TIMEOUT":
		return rest, p.stage == begun && is(failed, booting)
	case "STOP_UNCONFIRMED":
		return rest, p.stage != waiting
	case "ROTATION_UNCONFIRMED": // completed later, if it was not yet
		if p.stage == done {
			return rest, true
		}
		rest.lost[p.kind]++
		return rest, is(running)
	}
	return l, false
}

// states maps a state in a GET to its phase.
var states = map[string]phase{"provisioning": booting, "running": running, "sleeping": sleeping, "stopped": stopped, "failed": failed, "destroying": destroying}

// seen is the part of answered for a GET.
func (u *user) seen(l life, c *call) (life, bool) {
	if c.answer.code == "ENGINE_NOT_FOUND" {
		return l, l.phase == none
	}
	want, known := states[c.answer.state]
	if !c.answer.ok() || !known {
		return l, false
	}
	return u.shown(l, c, want)
}

// shown reports whether an engine can be shown in a phase, with the id and the key in the
// response, and returns what is known afterwards.
func (u *user) shown(l life, c *call, as phase) (life, bool) {
	if l.phase != as && !((l.phase == stopping || l.phase == dozing) && l.from == as) {
		return l, false
	}
	if l.phase == booting && l.from == none {
		return l, true // neither is final yet
	}
	id, key := u.id(c), u.key(c)
	if l.id == 0 && !has(l.gone, id) {
		l.id = id
	}
	if key != 0 && l.key == 0 && !has(l.old, key) {
		l.key = key
	}
	// No key is shown while a rotation is in progress and the engine accepts neither the old
	// key nor the new one; how long that takes is not known here.
	keyless := key == 0 && c.kind == get && (l.phase == destroying || u.rotated(c))
	return l, l.id == id && (l.key == key || keyless)
}

// operations returns the user's history for porcupine.
func (u *user) operations() []porcupine.Operation {
	var ops []porcupine.Operation
	for i, c := range u.calls {
		n := int16(i)
		if c.kind == get {
			if !c.answer.unknown() {
				ops = append(ops, porcupine.Operation{Input: event{n, 'a'}, Call: c.invoked, Return: c.returned})
			}
			continue
		}
		ops = append(ops, porcupine.Operation{Input: event{n, 'b'}, Call: c.invoked - 1, Return: c.invoked - 1})
		if c.answer.unknown() {
			ops = append(ops, porcupine.Operation{Input: event{n, 'l'}, Call: c.returned, Return: c.returned})
			continue
		}
		ops = append(ops, porcupine.Operation{Input: event{n, 'a'}, Call: c.invoked, Return: c.returned})
	}
	return ops
}

// model returns the user's model for porcupine.
func (u *user) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return []life{{}} },
		Step: func(state, input, _ any) (bool, any) {
			next := u.step(state.([]life), input.(event))
			return len(next) > 0, next
		},
		Equal: func(a, b any) bool { return slices.Equal(a.([]life), b.([]life)) },
		Hash: func(state any) uint64 {
			h := fnv.New64a()
			for _, l := range state.([]life) {
				_, _ = fmt.Fprint(h, l.phase, l.from, l.id, l.key, l.pend, l.lost)
			}
			return h.Sum64()
		},
		DescribeOperation: func(input, _ any) string {
			e := input.(event)
			return string(e.what) + " " + u.calls[e.call].String()
		},
	}
}
