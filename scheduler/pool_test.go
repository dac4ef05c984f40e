package scheduler

import (
	"testing"
	"time"
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
	} {
		if got := p.due(c.node, c.count, begin.Add(c.after)); got != c.want {
			t.Errorf("%s with %d after %s: %t, want %t", c.node, c.count, c.after, got, c.want)
		}
	}
	one := newVolumePool(&Scheduler{opts: Options{VolumePool: 1}})
	if !one.due("a", 1, begin) && !one.due("a", 0, begin) {
		t.Error("a pool of one waits although it is empty")
	}
}
