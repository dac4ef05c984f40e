package harness

import (
	"slices"
	"strings"
	"sync"
)

// LogBuffer collects what a service logs; it may be read meanwhile.
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

// Count is how many lines have all of these marks: a level as "[WARN]", the name of a
// logger as "images:", a field as "op=" or "op=stop". What a line says is prose, and no
// test's concern.
func (l *LogBuffer) Count(marks ...string) (n int) {
	// A field of several lines is on lines of its own, which are indented.
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

// Passes is how many full reconcile passes were logged.
func (l *LogBuffer) Passes() int { return l.Count("actions=", "ms=") }
