//go:build linux

package main

import (
	"maps"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// stopwatch times one operation and its steps, in milliseconds.
type stopwatch struct {
	began, last time.Time
	total       float64 // until the end of the last step
	steps       map[string]float64
}

func startWatch() *stopwatch {
	now := time.Now()
	return &stopwatch{began: now, last: now, steps: map[string]float64{}}
}

// step ends a step, which began where the one before ended.
func (w *stopwatch) step(name string) {
	now := time.Now()
	w.steps[name], w.total, w.last = millis(now.Sub(w.last)), millis(now.Sub(w.began)), now
}

// elsewhere are the steps of the service's operations in which Nomad, the node or the
// engine does the work.
var elsewhere = []string{"register", "boot", "scale-down", "drain", "purge", "volume", "thaw", "proof"}

// without is the whole time without that of the named steps.
func (w *stopwatch) without(steps ...string) float64 {
	rest := w.total
	for _, name := range steps {
		rest -= w.steps[name]
	}
	return max(0, rest)
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// recorder holds what was measured, by series, in milliseconds.
type recorder map[string][]float64

// The names of the series that belong to another one.
func stepOf(series, step string) string { return step + " of " + series }
func ownOf(series string) string        { return "own/" + series }

// betweenSteps is what of an operation is in no reported step: of the service, HTTP,
// authentication and queueing.
const betweenSteps = "(between the steps)"

func (r recorder) add(series string, ms float64) { r[series] = append(r[series], ms) }

// operation records an operation and its steps. By the service, it records also its
// own share: what the caller waits without the steps in which others work.
func (r recorder) operation(series string, w *stopwatch, byOrch bool) {
	r.add(series, w.total)
	for name, ms := range w.steps {
		r.add(stepOf(series, name), ms)
	}
	r.add(stepOf(series, betweenSteps), w.without(slices.Collect(maps.Keys(w.steps))...))
	if byOrch {
		r.add(ownOf(series), w.without(elsewhere...))
	}
}

func (r recorder) summary(series string) summary { return summarize(r[series]) }

// summary is a series in four numbers; none: n is 0.
type summary struct {
	n             int
	p50, p95, p99 float64
}

// summarize returns the percentiles of values in milliseconds, to 0.1 % and at least to
// a microsecond. With fewer than 100 values the 99th is the greatest.
func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	h := hdrhistogram.New(1, int64(time.Hour/time.Microsecond), 3)
	for _, ms := range values {
		_ = h.RecordValue(min(int64(ms*1000), h.HighestTrackableValue())) // so it is in range
	}
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return summary{n: len(values), p50: at(50), p95: at(95), p99: at(99)}
}

// once is a value that was measured once.
func once(v float64) summary { return summary{n: 1, p50: v, p95: v, p99: v} }
