package harness

import (
	"slices"
	"strings"
	"sync"
)

// LogBuffer collects the log of a service. It may be read at any time.
type LogBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *LogBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *LogBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Count returns how many lines contain all of these marks: a level such as "[WARN]", the
// name of a logger such as "images:", or a field such as "op=" or "op=stop". Tests do not
// assert the prose of a line.
func (l *LogBuffer) Count(marks ...string) (n int) {
	// A field of several lines is on indented lines of its own.
	for line := range strings.Lines(strings.ReplaceAll(l.String(), "\n  ", "   ")) {
		line = " " + strings.TrimSuffix(line, "\n") + " "
		if !slices.ContainsFunc(marks, func(mark string) bool {
			mark = " " + mark
			if !strings.HasSuffix(mark, "=") {
				mark += " "
			}
			return !strings.Contains(line, mark)
		}) {
			n++
		}
	}
	return n
}

// Passes returns how many full reconcile passes were logged.
func (l *LogBuffer) Passes() int { return l.Count("actions=", "ms=") }
