//go:build linux

package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/septemberai/orch/scheduler/operation"
)

// report is the result of one run: its figures, and which steps and processes use the time.
type report struct {
	began   time.Time
	head    string // commit, machine and versions
	figures []figure
	steps   [][]string
	cpu     [][]string
	notes   []string
}

// figure is one line of the report.
type figure struct {
	name, unit string
	orch       summary // with the service
	own        summary // the service's own share of orch
	against    string  // the name of what it is compared with
	floor      summary // without the service
	ratio      float64 // of the medians of orch and floor; 0: none
	target     string
	missed     bool
}

func newReport() *report { return &report{began: time.Now()} }

// progress writes to stderr what is being done.
func (rep *report) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(rep.began).Seconds(), fmt.Sprintf(format, args...))
}

func (rep *report) note(format string, args ...any) {
	rep.notes = append(rep.notes, fmt.Sprintf(format, args...))
}

func (rep *report) add(f figure) { rep.figures = append(rep.figures, f) }

// beside compares a figure with the same operation without the service.
func (f figure) beside(against string, floor summary) figure {
	f.against, f.floor, f.ratio = against, floor, 0
	if floor.p50 > 0 {
		f.ratio = f.orch.p50 / floor.p50
	}
	return f
}

// most sets the target that a value is at most most; 0: no target.
func (f figure) most(value, most float64, format string) figure {
	if most != 0 {
		f.target, f.missed = fmt.Sprintf(format, math.Abs(most)), value > most
	}
	return f
}

// least sets the target that a value is at least least; 0: no target.
func (f figure) least(value, least float64, format string) figure {
	return f.most(-value, -least, format)
}

// addSteps adds the steps of a recorded operation, the longest median first, unless they
// have been added.
func (rep *report) addSteps(rec recorder, series string) {
	medians := map[string]float64{}
	for name := range rec {
		if step, ok := strings.CutSuffix(name, stepOf(series, "")); ok {
			medians[step] = rec.summary(name).p50
		}
	}
	known := slices.ContainsFunc(rep.steps, func(row []string) bool { return row[0] == series })
	if len(medians) == 0 || known {
		return
	}
	var steps []string
	byTime := func(a, b string) int { return cmp.Or(cmp.Compare(medians[b], medians[a]), cmp.Compare(a, b)) }
	for _, step := range slices.SortedFunc(maps.Keys(medians), byTime) {
		steps = append(steps, step+" "+number(medians[step]))
	}
	rep.steps = append(rep.steps, []string{series, number(rec.summary(series).p50), strings.Join(steps, ", ")})
}

// row returns the figure's row in the table.
func (f figure) row() []string {
	own, ratio, reached := f.own.cells(), none, none
	if f.ratio > 0 {
		ratio = fmt.Sprintf("%.2f", f.ratio)
	}
	if f.target != "" {
		reached = map[bool]string{false: "yes", true: "**no**"}[f.missed]
	}
	of := slices.Concat([]string{f.name, f.unit, fmt.Sprint(f.orch.n)}, f.orch.cells(), []string{own[0], own[2]})
	return slices.Concat(of, []string{cmp.Or(f.against, none)}, f.floor.cells(), []string{ratio, cmp.Or(f.target, none), reached})
}

// markdown returns the report as Markdown with aligned tables, which is also readable as
// plain text.
func (rep *report) markdown() string {
	var b strings.Builder
	took := time.Since(rep.began).Seconds()
	fmt.Fprintf(&b, "### Benchmark of %s\n\n%s; took %.0f s.\n", rep.began.UTC().Format(time.DateTime+" MST"), rep.head, took)
	var rows [][]string
	for _, f := range rep.figures {
		rows = append(rows, f.row())
	}
	writeTable(&b, "Figures (own: orch's share of the time):",
		"figure,unit,N,p50,p95,p99,own p50,own p99,against,p50,p95,p99,ratio,target,reached", rows)
	writeTable(&b, "Where the time goes (medians in ms, longest step first):", "operation,total,steps", rep.steps)
	writeTable(&b, "CPU time of each operation by process (ms; busy: of all cores, by anything):",
		"operation,"+strings.Join(processParts, ",")+",together,orch less its rest,busy", rep.cpu)
	b.WriteString("\n")
	for _, note := range rep.notes {
		b.WriteString("- " + note + "\n")
	}
	return b.String()
}

const none = "–"

// number formats a value with two decimals below 10, and with one otherwise.
func number(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// cells returns the percentiles for a table; a value that was measured once only in the
// first column.
func (s summary) cells() []string {
	switch s.n {
	case 0:
		return []string{none, none, none}
	case 1:
		return []string{number(s.p50), none, none}
	}
	return []string{number(s.p50), number(s.p95), number(s.p99)}
}

// writeTable writes a heading and an aligned Markdown table, unless it has no rows.
func writeTable(b *strings.Builder, heading, columns string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n" + heading + "\n\n")
	w := tabwriter.NewWriter(b, 0, 0, 1, ' ', 0)
	head := strings.Split(columns, ",")
	for _, row := range slices.Concat([][]string{head, slices.Repeat([]string{"---"}, len(head))}, rows) {
		_, _ = fmt.Fprintf(w, "| %s\t|\n", strings.Join(row, "\t| ")) // to memory
	}
	_ = w.Flush()
}

// stopwatch times one operation and its steps, in milliseconds.
type stopwatch struct {
	began time.Time
	total float64 // until the end of the last step
	steps map[string]float64
}

func startWatch() *stopwatch { return &stopwatch{began: time.Now(), steps: map[string]float64{}} }

// step ends a step. The next step begins at the same time.
func (w *stopwatch) step(name string) {
	before := w.total
	w.total = millis(time.Since(w.began))
	w.steps[name] = w.total - before
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// recorder contains the measured values by series, in milliseconds.
type recorder map[string][]float64

// The names of the series of steps, and of the service's own share, of another series.
func stepOf(series, step string) string { return step + " of " + series }
func ownOf(series string) string        { return "own/" + series }

// betweenSteps is the part of an operation that is not in a reported step: for the service,
// HTTP, authentication and queueing.
const betweenSteps = "(between the steps)"

func (r recorder) add(series string, ms float64) { r[series] = append(r[series], max(0, ms)) }

// operation records an operation and its steps. byOrch: the service made the operation; then
// its own share is recorded, too: the time without the steps in elsewhere.
func (r recorder) operation(series string, w *stopwatch, byOrch bool) {
	r.add(series, w.total)
	between, own := w.total, w.total
	for name, ms := range w.steps {
		r.add(stepOf(series, name), ms)
		between -= ms
		if operation.Elsewhere(name) {
			own -= ms
		}
	}
	r.add(stepOf(series, betweenSteps), between)
	if byOrch {
		r.add(ownOf(series), own)
	}
}

func (r recorder) summary(series string) summary { return summarize(r[series]) }

// summary is a series' number of values and percentiles. n is 0 if there are no values.
type summary struct {
	n             int
	p50, p95, p99 float64
}

// summarize returns the percentiles of values in milliseconds, with an error of at most
// 0.1 % or a microsecond. With fewer than 100 values the 99th is the greatest value.
func summarize(values []float64) summary {
	h := hdrhistogram.New(1, int64(time.Hour/time.Microsecond), 3)
	for _, ms := range values {
		_ = h.RecordValue(min(int64(ms*1000), h.HighestTrackableValue())) // so it is in range
	}
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return summary{n: len(values), p50: at(50), p95: at(95), p99: at(99)}
}

// once returns the summary of a single value.
func once(v float64) summary { return summary{n: 1, p50: v, p95: v, p99: v} }
