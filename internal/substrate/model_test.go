// Package substrate tests the properties of Nomad, Consul and Vault that the service's
// fences rely on: a write that names an index is made only at that index, and a write that
// names a session is made only while the session lives. Concurrent writers use real agents,
// and porcupine searches for an order of their calls in which every response is true.
package substrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// kind is the kind of a call.
type kind string

const (
	read   kind = "read"
	write  kind = "write"  // if the index is at
	remove kind = "remove" // if the index is at
	// overwrite is a write that was reported as refused, but was made, at any index.
	overwrite kind = "overwrite"
	// held is a write that is made only while the session lives.
	held kind = "held"
	// invalidate ends the session.
	invalidate kind = "invalidate"
)

// call is one call with its response. A read that finds nothing has the index 0.
type call struct {
	kind    kind
	at      uint64 // the index that the call names
	refused bool
	index   uint64 // the index read or written
	value   string // the value read or written

	writer            int
	invoked, returned time.Duration // since the history began
}

func (c *call) String() string {
	s := fmt.Sprintf("%8.3f %8.3f ms, writer %d: %s", ms(c.invoked), ms(c.returned), c.writer, c.kind)
	if c.kind == write || c.kind == remove {
		s += fmt.Sprintf(" at %d", c.at)
	}
	if c.refused {
		return s + ": refused"
	}
	return s + fmt.Sprintf(": %q at %d", c.value, c.index)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// state is the stored value, and whether the session has ended.
type state struct {
	index uint64 // 0: nothing
	value string
	ended bool
}

// step reports whether a call can have its response in a state, and returns the state after
// it.
func (s state) step(c *call) (bool, state) {
	switch c.kind {
	case read:
		return s.index == c.index && s.value == c.value, s
	case invalidate:
		s.ended = true
		return true, s
	}
	holds := s.index == c.at
	switch c.kind {
	case overwrite:
		holds = true
	case held:
		holds = !s.ended
	}
	if c.refused || !holds {
		return c.refused == !holds, s
	}
	s.index, s.value = c.index, c.value
	return true, s
}

// checkTimeout limits the search for an order.
const checkTimeout = 10 * time.Second

// linearizable returns nil if there is an order in which all responses are true.
func linearizable(calls []*call) error {
	model := porcupine.Model{
		Init: func() any { return state{} },
		Step: func(s, in, _ any) (bool, any) { return s.(state).step(in.(*call)) },
	}
	var history []porcupine.Operation
	for _, c := range calls {
		history = append(history, porcupine.Operation{ClientId: c.writer, Input: c, Call: int64(c.invoked), Return: int64(c.returned)})
	}
	result := porcupine.CheckOperationsTimeout(model, history, checkTimeout)
	if result == porcupine.Ok {
		return nil
	}
	sorted := slices.SortedFunc(slices.Values(calls), func(a, b *call) int { return cmp.Compare(a.invoked, b.invoked) })
	var b strings.Builder
	for _, c := range sorted {
		fmt.Fprintln(&b, c)
	}
	return fmt.Errorf("no order of the calls makes all responses true (%s):\n%s", result, &b)
}

// script parses a history: each line is "invoked returned kind at index value", with index
// 0 for a refused call.
func script(t *testing.T, lines ...string) []*call {
	t.Helper()
	var calls []*call
	for n, line := range lines {
		c := &call{writer: n}
		var value string
		if _, err := fmt.Sscan(line, &c.invoked, &c.returned, &c.kind, &c.at, &c.index, &value); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		c.value = strings.TrimPrefix(value, "-")
		c.refused = c.index == 0 && c.kind != read && c.kind != remove && c.kind != invalidate
		calls = append(calls, c)
	}
	return calls
}

func TestModel(t *testing.T) {
	for name, lines := range map[string][]string{
		"a life":                             {"1 2 read 0 0 -", "3 4 write 0 7 a", "5 6 write 7 9 b", "7 8 read 0 9 b", "9 10 remove 9 0 -", "11 12 read 0 0 -"},
		"one of two wins":                    {"1 9 write 0 7 a", "2 8 write 0 0 b", "10 11 read 0 7 a"},
		"a refusal shows a write under way":  {"1 9 write 0 7 a", "2 3 write 0 0 b"},
		"a refused write that was made":      {"1 2 write 0 7 a", "3 9 overwrite 7 8 b", "4 5 read 0 7 a", "6 7 read 0 8 b"},
		"a session that ends between writes": {"1 2 held 0 7 a", "3 9 invalidate 0 0 -", "4 5 held 0 8 b", "6 7 held 0 0 c", "10 11 read 0 8 b"},
	} {
		t.Run("OK "+name, func(t *testing.T) {
			if err := linearizable(script(t, lines...)); err != nil {
				t.Error(err)
			}
		})
	}
	for name, lines := range map[string][]string{
		"two winners at one index":            {"1 9 write 0 7 a", "2 8 write 0 8 b"},
		"a write at an old index":             {"1 2 write 0 7 a", "3 4 write 7 8 b", "5 6 write 7 9 c"},
		"a lost write":                        {"1 2 write 0 7 a", "3 4 read 0 0 -"},
		"an old value":                        {"1 2 write 0 7 a", "3 4 write 7 8 b", "5 6 read 0 7 a"},
		"another's value at a winner's index": {"1 2 write 0 7 a", "3 4 read 0 7 b"},
		"a refusal without a reason":          {"1 2 write 0 7 a", "3 4 write 7 0 b"},
		"two removals of one value":           {"1 2 write 0 7 a", "3 9 remove 7 0 -", "4 8 remove 7 0 -"},
		"a write of an ended session":         {"1 2 held 0 7 a", "3 4 invalidate 0 0 -", "5 6 held 0 8 b"},
		"a living session that is refused":    {"1 2 held 0 0 a", "3 4 invalidate 0 0 -"},
	} {
		t.Run("Err "+name, func(t *testing.T) {
			if err := linearizable(script(t, lines...)); err == nil {
				t.Error("it was accepted as linearizable")
			}
		})
	}
}
