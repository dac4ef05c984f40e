package chaos

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// simulated returns a history of an engine that behaves correctly: each call takes effect
// at one moment while it is made or, if its response is lost, perhaps later or not at all.
func simulated(rng *rand.Rand, calls int) []*call {
	type engine struct{ state, id, key string }
	var now engine
	var made int
	fresh := func(what string) string { made++; return fmt.Sprint(what, made) }
	apply := func(c *call) {
		refuse := func(code string) { c.answer = answer{status: 409, code: code} }
		c.answer = answer{status: 200}
		switch {
		case c.kind == provision && now.state != "":
			refuse("ENGINE_ALREADY_EXISTS")
		case c.kind == provision, c.kind == admit && now.state == "" && c.autoProvision:
			now = engine{"running", fresh("id"), fresh("key")}
			c.answer.engineID, c.answer.key = now.id, now.key
		case c.kind == admit && now.state == "":
			c.answer.denial = "engine_not_found"
		case now.state == "":
			refuse("ENGINE_NOT_FOUND")
		case c.kind == admit && now.state == "stopped":
			c.answer.denial = "engine_stopped"
		case c.kind == admit, c.kind == get:
			c.answer.engineID, c.answer.key = now.id, now.key
			if c.kind == get {
				c.answer.state = now.state
			}
		case c.kind == destroy:
			c.answer.engineID = now.id
			now = engine{}
		case c.kind == start && now.state == "running":
			refuse("ENGINE_ALREADY_RUNNING")
		case c.kind == stop && now.state == "stopped", c.kind == rotate && now.state == "stopped":
			refuse("ENGINE_NOT_RUNNING")
		case c.kind == start:
			now.state = "running"
		case c.kind == stop:
			now.state = "stopped"
		case c.kind == rotate:
			now.key = fresh("key")
			c.answer.key = now.key
		}
	}
	var all, open []*call
	var clock int64
	forget := func(c *call) { c.answer = answer{}; clock++; c.returned = clock; all = append(all, c) }
	for len(all)+len(open) < calls || len(open) > 0 {
		if len(all)+len(open) < calls && (len(open) < 3 && rng.IntN(2) == 0 || len(open) == 0) {
			c := mix[rng.IntN(len(mix))].call
			clock += 2
			c.invoked = clock
			open = append(open, &c)
			continue
		}
		i := rng.IntN(len(open))
		c := open[i]
		open = append(open[:i], open[i+1:]...)
		if rng.IntN(3) == 0 { // its response is lost
			if rng.IntN(2) == 0 {
				apply(c)
			}
			forget(c)
			continue
		}
		apply(c)
		clock++
		c.returned = clock
		all = append(all, c)
	}
	return all
}

// TestModelAcceptsWhatIsRight: for a correct engine, with a third of all responses lost, an
// order is found, and in time.
func TestModelAcceptsWhatIsRight(t *testing.T) {
	for seed := range uint64(10) {
		calls := simulated(rand.New(rand.NewPCG(seed, 1)), 80)
		if err := linearizable(calls); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
