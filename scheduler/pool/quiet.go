package pool

import (
	"slices"
	"time"

	"github.com/septemberai/orch/cluster"
)

// quietPeriod is the time in which nobody takes volumes, when pools of which more than
// half is left are filled up, a few nodes after another.
type quietPeriod struct {
	total int       // entries at the last look
	since time.Time // of the last look that found fewer than the one before
	next  time.Time // when the next node may be filled up
}

// look notes how many entries there are, by node, and says whether any were taken in
// the last poolQuiet.
func (l *quietPeriod) look(count map[string]int, now time.Time) (taken bool) {
	total := 0
	for _, n := range count {
		total += n
	}
	if total < l.total {
		l.since = now
	}
	l.total = total
	return now.Sub(l.since) < poolQuiet
}

// due are the ids of the nodes whose pools are to be filled up to a size now: all of
// those that are half empty, and in a quiet period the emptiest of the others.
func (l *quietPeriod) due(nodes []cluster.Node, count map[string]int, size int, now time.Time) (due []string) {
	slices.SortFunc(nodes, func(a, b cluster.Node) int { return count[a.ID] - count[b.ID] })
	for _, node := range nodes {
		switch n := count[node.ID]; {
		case n >= size:
		case n <= size/2:
			due = append(due, node.ID)
		case now.Sub(l.since) >= poolQuiet && !now.Before(l.next):
			due = append(due, node.ID)
			l.next = now.Add(time.Duration(node.Allocs) * poolQuietEach)
		}
	}
	return due
}
