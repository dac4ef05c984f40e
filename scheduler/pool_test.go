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

// A volume is handed out once until its holder says how it went; what nobody got
// is read again, since another replica may have it.
func TestPoolHandsOutOnce(t *testing.T) {
	p := newVolumePool(&Scheduler{})
	volumes := []*registry.PooledVolume{{EngineID: "a", NodeID: "n"}, {EngineID: "b", NodeID: "n"}, {EngineID: "c", NodeID: "n"}}
	fill := func() { p.known["n"] = readyVolumes{volumes: volumes} }
	fill()
	a := p.hold("n")
	fill() // read again while it is held
	b, c := p.hold("n"), p.hold("n")
	if a == nil || b == nil || c == nil || a == b || b == c || a == c || p.hold("n") != nil || p.hold("other") != nil {
		t.Fatalf("held %v, %v, %v", a, b, c)
	}
	p.claimed(a)
	select {
	case <-p.nudge:
	default:
		t.Error("a claim asks for no refill")
	}
	fill()
	p.release(b)
	if p.hold("n") != nil {
		t.Error("what is known of a node outlives a volume that could not be claimed")
	}
	p.claimed(nil)
	p.release(nil)
	p.claimed(c)
	if len(p.held) > 0 {
		t.Errorf("still held: %v", p.held)
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
