package main

import (
	"math"
	"slices"
	"time"
)

// recorder holds what was measured, by series, in milliseconds.
type recorder map[string][]float64

func (r recorder) add(series string, ms float64) { r[series] = append(r[series], ms) }

// addSteps records the parts of one operation, and what is between them.
func (r recorder) addSteps(operation string, t timing) {
	between := t.total
	for name, ms := range t.steps {
		r.add(stepSeries(operation, name), ms)
		between -= ms
	}
	r.add(stepSeries(operation, betweenSteps), between)
}

// stepPrefix begins the names of the series of one operation's steps.
func stepPrefix(operation string) string { return "step/" + operation + "/" }

func stepSeries(operation, step string) string { return stepPrefix(operation) + step }

// betweenSteps is what of the wait is in no part that is told: of the service,
// HTTP, authentication and turns.
const betweenSteps = "(between the steps)"

// timing is one operation: how long its caller waited, and the steps of which
// the service (or the measurement by hand) says how long they took; in ms.
type timing struct {
	total float64
	steps map[string]float64
}

// without is the caller's wait without the named steps.
func (t timing) without(steps ...string) float64 {
	rest := t.total
	for _, name := range steps {
		rest -= t.steps[name]
	}
	return rest
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// summary is a series in four numbers.
type summary struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// summarize uses the nearest rank: each number was measured, none is made up
// between two. With fewer than 100 values p99 is the greatest.
func summarize(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	rank := func(p float64) float64 {
		if len(sorted) == 0 {
			return math.NaN()
		}
		return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
	}
	return summary{N: len(sorted), P50: rank(0.50), P95: rank(0.95), P99: rank(0.99)}
}
