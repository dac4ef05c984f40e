package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// TestPoolIsFilledInBatches: a node's pool is filled up when half of it is left,
// or when nobody has taken of it for a while.
func TestPoolIsFilledInBatches(t *testing.T) {
	p := newVolumePool(&Scheduler{opts: Options{VolumePool: 8}})
	begin := time.Now()
	for _, c := range []struct {
		after time.Duration
		node  string
		count int
		want  bool
	}{
		{0, "a", 0, true},
		{time.Second, "a", 8, false},
		{2 * time.Second, "a", 7, false},
		{2 * time.Second, "b", 4, true}, // another node
		{5 * time.Second, "a", 6, false},
		{9 * time.Second, "a", 5, false}, // taken of, again and again
		{10 * time.Second, "a", 4, true},
		{11 * time.Second, "a", 7, false},
		{16 * time.Second, "a", 7, true}, // quiet
		{16 * time.Second, "full", 7, false},
		{31 * time.Second, "full", 7, false}, // an evaluation for each of its engines is much
		{36 * time.Second, "full", 7, true},
		{37 * time.Second, "full", 4, true},
	} {
		node := cluster.Node{ID: c.node}
		if c.node == "full" {
			node.Allocs = 200
		}
		if got := p.due(node, c.count, begin.Add(c.after)); got != c.want {
			t.Errorf("%s with %d after %s: %t, want %t", c.node, c.count, c.after, got, c.want)
		}
	}
	one := newVolumePool(&Scheduler{opts: Options{VolumePool: 1}})
	if !one.due(cluster.Node{}, 1, begin) && !one.due(cluster.Node{}, 0, begin) {
		t.Error("a pool of one waits although it is empty")
	}
}

// TestHandout: a volume is handed out once, also when a list that was begun before
// it was claimed still has it; what nobody got is read again, since another replica
// may have it.
func TestHandout(t *testing.T) {
	h, now := newHandout(), time.Now()
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
	h.learn("n", all, now) // begun before it was claimed
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
	h.learn("", on("n", "y"), now) // m has none any more
	if h.knows("m", now) || !h.knows("n", now) {
		t.Error("a list of all nodes leaves what was known of one")
	}
	h.claimed(third, now)
	h.learn("", nil, now.Add(time.Hour))
	if len(h.held) > 1 {
		t.Errorf("kept for ever: %v", h.held)
	}
}

// TestHandoutCounts: what is claimed while the entries are counted is not left.
func TestHandoutCounts(t *testing.T) {
	h, v := newHandout(), &registry.PooledVolume{EngineID: "a", NodeID: "n"}
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

// TestPoolLeavesAFailingNodeAlone: a node on which a volume cannot be made is tried
// again later and later, and keeps no other node from its volumes.
func TestPoolLeavesAFailingNodeAlone(t *testing.T) {
	p := newVolumePool(&Scheduler{opts: Options{VolumePool: 4}})
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
			t.Fatalf("%d made, %v", n, err)
		}
		now := time.Now()
		wait := p.setbacks["bad"].until.Sub(now)
		if p.setBack("good", now) || !p.setBack("bad", now) || p.setBack("bad", now.Add(poolBackoffMax)) {
			t.Fatalf("set back after try %d: %+v", try, p.setbacks)
		}
		if wait <= before {
			t.Errorf("try %d waits %s, the one before %s", try, wait, before)
		}
		before = wait
	}
	if _, err := p.each(on("good"), badly); err != nil || !p.setBack("bad", time.Now()) {
		t.Errorf("what another node made ended the setback: %v", err)
	}
	if _, err := p.each(on("bad"), func(*registry.PooledVolume) (bool, error) { return true, nil }); err != nil || p.setBack("bad", time.Now()) {
		t.Errorf("a volume was made, %v, and the node is set back", err)
	}
}
