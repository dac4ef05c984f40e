//go:build linux

package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is one run: its figures, and where time and CPU go.
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
	orch       summary
	own        summary // the service's own share of it
	against    string  // what it is compared with
	floor      summary // what that took
	ratio      float64 // of the medians; 0: none
	target     string
	missed     bool
}

func newReport() *report { return &report{began: time.Now()} }

// progress says on stderr what is being done.
func (rep *report) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(rep.began).Seconds(), fmt.Sprintf(format, args...))
}

func (rep *report) note(format string, args ...any) {
	rep.notes = append(rep.notes, fmt.Sprintf(format, args...))
}

func (rep *report) add(f figure) { rep.figures = append(rep.figures, f) }

// single adds a value that was measured once.
func (rep *report) single(name, unit string, value float64) {
	rep.add(figure{name: name, unit: unit, orch: once(value)})
}

// beside compares a figure with what the same takes without the service.
func (f figure) beside(against string, floor summary) figure {
	f.against, f.floor, f.ratio = against, floor, 0
	if floor.p50 > 0 {
		f.ratio = f.orch.p50 / floor.p50
	}
	return f
}

// most sets the target that a value may be at most so much; 0: no target.
func (f figure) most(value, most float64, format string) figure {
	if most != 0 {
		f.target, f.missed = fmt.Sprintf(format, math.Abs(most)), value > most
	}
	return f
}

// least sets the target that a value must be at least so much; 0: no target.
func (f figure) least(value, least float64, format string) figure {
	return f.most(-value, -least, format)
}

// addSteps adds where the time of a recorded operation goes, once: medians, longest
// first.
func (rep *report) addSteps(rec recorder, series string) {
	var steps []string
	for name := range rec {
		if step, ok := strings.CutSuffix(name, stepOf(series, "")); ok {
			steps = append(steps, step)
		}
	}
	took := func(step string) float64 { return rec.summary(stepOf(series, step)).p50 }
	slices.SortFunc(steps, func(a, b string) int { return cmp.Or(cmp.Compare(took(b), took(a)), cmp.Compare(a, b)) })
	for i, step := range steps {
		steps[i] = step + " " + number(took(step))
	}
	known := slices.ContainsFunc(rep.steps, func(row []string) bool { return row[0] == series })
	if len(steps) > 0 && !known {
		rep.steps = append(rep.steps, []string{series, number(rec.summary(series).p50), strings.Join(steps, ", ")})
	}
}

// markdown is the report for people, aligned so that it can be read as it is.
func (rep *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### Benchmark of %s\n\n%s; took %.0f s.\n", rep.began.UTC().Format(time.DateTime+" MST"), rep.head, time.Since(rep.began).Seconds())
	var rows [][]string
	for _, f := range rep.figures {
		own, ratio, reached := f.own.cells(), none, none
		if f.ratio > 0 {
			ratio = fmt.Sprintf("%.2f", f.ratio)
		}
		if f.target != "" {
			reached = map[bool]string{false: "yes", true: "**no**"}[f.missed]
		}
		rows = append(rows, slices.Concat([]string{f.name, f.unit, fmt.Sprint(f.orch.n)}, f.orch.cells(), []string{own[0], own[2], cmp.Or(f.against, none)},
			f.floor.cells(), []string{ratio, cmp.Or(f.target, none), reached}))
	}
	writeTable(&b, "Figures (own: orch's share of the time):", strings.Split("figure,unit,N,p50,p95,p99,own p50,own p99,against,p50,p95,p99,ratio,target,reached", ","), rows)
	writeTable(&b, "Where the time goes (medians in ms, longest step first):", []string{"operation", "total", "steps"}, rep.steps)
	writeTable(&b, "CPU time of each operation by process (ms; busy: of all cores, by anything):", slices.Concat([]string{"operation"}, processParts, []string{"together", "orch less its rest", "busy"}), rep.cpu)
	b.WriteString("\n")
	for _, note := range rep.notes {
		b.WriteString("- " + note + "\n")
	}
	return b.String()
}

const none = "–"

// number has three digits that count, or all before the point.
func number(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// cells are the percentiles for a table, a single value only once.
func (s summary) cells() []string {
	switch s.n {
	case 0:
		return []string{none, none, none}
	case 1:
		return []string{number(s.p50), none, none}
	}
	return []string{number(s.p50), number(s.p95), number(s.p99)}
}

// writeTable writes a Markdown table below its heading, aligned, if it has any rows.
func writeTable(b *strings.Builder, heading string, head []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n" + heading + "\n\n")
	w := tabwriter.NewWriter(b, 0, 0, 1, ' ', 0)
	line := func(row []string) { _, _ = fmt.Fprintf(w, "| %s\t|\n", strings.Join(row, "\t| ")) } // to memory
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, row := range rows {
		line(row)
	}
	_ = w.Flush()
}
