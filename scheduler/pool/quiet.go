package pool

import (
	"slices"
	"time"

	"github.com/septemberai/orch/cluster"
)

// quietPeriod is a time without claims, in which pools that are more than half full are
// refilled, a few nodes after another.
type quietPeriod struct {
	total int       // number of entries at the last check
	since time.Time // time of the last check that found fewer entries than before
	next  time.Time // when the next node may be refilled
}

// look records how many entries there are, by node, and reports whether any were claimed in
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

// due returns the ids of the nodes whose pools must be refilled to a size now: all that are
// half empty, and in a quiet period the emptiest of the others.
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
