package pool

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// TestPoolIsFilledInBatches: the pool of a node is filled when half of it is used; other
// pools, the emptiest first, when no volume has been taken for a while. A few nodes at a
// time are filled, depending on the allocations that Nomad evaluates for this.
func TestPoolIsFilledInBatches(t *testing.T) {
	const size = 8
	busy := cluster.Node{ID: "busy", Allocs: 200} // 60 s
	nodes := []cluster.Node{{ID: "a"}, {ID: "b", Allocs: 10}, busy}
	var l quietPeriod
	begin := time.Now()
	for _, c := range []struct {
		after      time.Duration
		a, b, busy int
		taken      bool
		want       []string
	}{
		{0, 0, 0, 0, false, []string{"a", "b", "busy"}},
		{time.Second, 8, 8, 8, false, nil},
		{2 * time.Second, 7, 8, 8, true, nil},
		{5 * time.Second, 6, 4, 5, true, []string{"b"}}, // half empty
		{6 * time.Second, 6, 8, 5, true, nil},
		{9 * time.Second, 5, 7, 5, true, nil},                     // taken from again
		{13 * time.Second, 5, 7, 5, true, nil},                    // 4 s ago
		{14 * time.Second, 5, 7, 5, false, []string{"a", "busy"}}, // a has no allocations to evaluate
		{15 * time.Second, 8, 7, 8, false, nil},                   // 200 evaluations
		{73 * time.Second, 8, 7, 8, false, nil},
		{74 * time.Second, 8, 7, 8, false, []string{"b"}},
		{75 * time.Second, 8, 8, 8, false, nil},
		{76 * time.Second, 8, 8, 3, true, []string{"busy"}},
	} {
		count, now := map[string]int{"a": c.a, "b": c.b, "busy": c.busy}, begin.Add(c.after)
		if taken := l.look(count, now); taken != c.taken {
			t.Errorf("after %s: taken %t, want %t", c.after, taken, c.taken)
		}
		due := l.due(slices.Clone(nodes), count, size, now)
		slices.Sort(due)
		if !slices.Equal(due, c.want) {
			t.Errorf("after %s: %v, want %v", c.after, due, c.want)
		}
		for _, node := range due { // volumes in creation count
			l.total += size - count[node]
		}
	}
	if due := new(quietPeriod).due([]cluster.Node{{ID: "a"}}, map[string]int{"a": 1}, 1, begin); len(due) > 0 {
		t.Error("a full pool of one is filled up")
	}
	if due := new(quietPeriod).due([]cluster.Node{{ID: "a"}}, nil, 1, begin); len(due) != 1 {
		t.Error("an empty pool of one waits")
	}
}

// TestReservation: a volume is handed out once, also when a list that was started before
// the claim still contains it. A volume that was not claimed after all is read again, since
// another replica may have it.
func TestReservation(t *testing.T) {
	h, now := newReservations(), time.Now()
	on := func(node string, ids ...string) (list []*registry.PooledVolume) {
		for _, id := range ids {
			list = append(list, &registry.PooledVolume{EngineID: id, NodeID: node})
		}
		return list
	}
	all := on("n", "a", "b", "c")
	h.learn("n", all, now)
	first := h.hold("n")
	h.learn("n", all, now) // read while it is held
	second := h.hold("n")
	h.claimed(first, now.Add(time.Second))
	h.learn("n", all, now) // started before it was claimed
	third := h.hold("n")
	if first == nil || second == nil || third == nil || first == second || second == third || third == first || h.hold("n") != nil || h.hold("other") != nil {
		t.Fatalf("handed out %v, %v, %v", first, second, third)
	}

	h.learn("n", on("n", "d"), now)
	if !h.knows("n", now) || h.knows("n", now.Add(knownFor)) || h.knows("other", now) {
		t.Error("what is known is not what was learnt, for as long as it is good")
	}
	h.release(second)
	if h.knows("n", now) || h.hold("n") != nil {
		t.Error("what is known of a node outlives a volume that could not be claimed")
	}
	h.release(nil)
	h.learn("n", all, now)
	if got := h.hold("n"); got != second {
		t.Errorf("handed out %v, want %v, which was given back", got, second)
	}

	h.learn("m", on("m", "x"), now)
	h.learn("", on("n", "y"), now) // m has none left
	if h.knows("m", now) || !h.knows("n", now) {
		t.Error("a list of all nodes leaves what was known of one")
	}
	h.claimed(third, now)
	h.learn("", nil, now.Add(time.Hour))
	if len(h.held) > 1 {
		t.Errorf("kept indefinitely: %v", h.held)
	}
}

// TestReservationCounts: a volume that is claimed while the entries are counted does not
// count as left.
func TestReservationCounts(t *testing.T) {
	h, v := newReservations(), &registry.PooledVolume{EngineID: "a", NodeID: "n"}
	h.counting()
	h.claimed(v, time.Now())
	h.counted(map[string]int{"n": 8})
	if left := h.claimed(v, time.Now()); left != 6 {
		t.Errorf("%d left, want 6", left)
	}
	h.counting()
	h.counted(map[string]int{"n": 8})
	if left := h.claimed(v, time.Now()); left != 7 {
		t.Errorf("%d left, want 7", left)
	}
}

// TestPoolLeavesAFailingNodeAlone: retries on a node on which a volume cannot be created
// have increasing delays, and do not affect other nodes.
func TestPoolLeavesAFailingNodeAlone(t *testing.T) {
	p := NewVolumes(Deps{Size: 4})
	full := errors.New("no space left on device")
	on := func(nodes ...string) (entries []*registry.PooledVolume) {
		for i, node := range nodes {
			entries = append(entries, &registry.PooledVolume{EngineID: fmt.Sprint(i), NodeID: node})
		}
		return entries
	}
	badly := func(v *registry.PooledVolume) (bool, error) {
		if v.NodeID == "bad" {
			return false, full
		}
		return true, nil
	}
	before := time.Duration(0)
	for try := range 3 {
		n, err := p.each(on("good", "bad", "good"), badly)
		if n != 2 || !errors.Is(err, full) || !strings.Contains(err.Error(), "node bad") {
			t.Fatalf("%d created, %v", n, err)
		}
		now := time.Now()
		wait := p.backoffs["bad"].until.Sub(now)
		if p.backingOff("good", now) || !p.backingOff("bad", now) || p.backingOff("bad", now.Add(poolBackoffMax)) {
			t.Fatalf("backing off after try %d: %+v", try, p.backoffs)
		}
		if wait <= before {
			t.Errorf("try %d waits %s, the one before %s", try, wait, before)
		}
		before = wait
	}
	if _, err := p.each(on("good"), badly); err != nil || !p.backingOff("bad", time.Now()) {
		t.Errorf("volumes of another node ended the backoff: %v", err)
	}
	if _, err := p.each(on("bad"), func(*registry.PooledVolume) (bool, error) { return true, nil }); err != nil || p.backingOff("bad", time.Now()) {
		t.Errorf("a volume was created, %v, but the node is backing off", err)
	}
}

// TestPoolAsksForTheFirstOfANode: while a node's first volume is not ready, its others are
// not queried, unless that takes too long; those of other nodes are.
func TestPoolAsksForTheFirstOfANode(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		firstBegan time.Time
		ready      map[string]bool
		fails      string
		want       []string
		noted      int
	}{
		"none is ready":           {now, nil, "", []string{"a1", "b1"}, 0},
		"a node's is ready":       {now, map[string]bool{"a1": true, "a2": true}, "", []string{"a1", "a2", "a3", "b1"}, 2},
		"the first never is":      {now.Add(-poolPatience), map[string]bool{"a2": true}, "", []string{"a1", "a2", "a3", "b1"}, 1},
		"the first fails":         {now.Add(-poolPatience), map[string]bool{"a2": true}, "a1", []string{"a1", "b1"}, 0},
		"a later one of a second": {now, map[string]bool{"b2": true}, "", []string{"a1", "b1"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewVolumes(Deps{Size: 4})
			p.begun = map[string]begunVolume{
				"a1": {"id", c.firstBegan}, "a2": {"id", now.Add(time.Second)}, "a3": {"id", now.Add(2 * time.Second)},
				"b1": {"id", now}, "b2": {"id", now.Add(time.Second)},
			}
			var waiting []*registry.PooledVolume
			for _, id := range []string{"b2", "a3", "a1", "b1", "a2"} {
				waiting = append(waiting, &registry.PooledVolume{EngineID: id, NodeID: id[:1]})
			}
			var mu sync.Mutex
			var asked []string
			noted, err := p.noteReady(waiting, func(v *registry.PooledVolume) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, v.EngineID)
				if v.EngineID == c.fails {
					return false, errors.New("no response")
				}
				return c.ready[v.EngineID], nil
			})
			slices.Sort(asked)
			if !slices.Equal(asked, c.want) || noted != c.noted || (err != nil) != (c.fails != "") {
				t.Errorf("queried %v and recorded %d, %v; want %v and %d", asked, noted, err, c.want, c.noted)
			}
		})
	}
}
