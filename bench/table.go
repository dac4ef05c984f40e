package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const none = "–"

// markdown is the report for people, aligned so that it can be read as it is.
func (rep *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark of %s, commit %s\n\n", rep.Began.Format(time.DateTime+" MST"), rep.Commit)
	m := rep.Machine
	fmt.Fprintf(&b, "%d cores (%s), %.0f MiB of memory, Linux %s, load average before %s. %d rounds%s in %.0f s.\n\n",
		m.Cores, m.CPU, m.MemoryMiB, m.Kernel, m.Load, rep.Rounds, partsOf(rep), rep.Seconds)
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(rep.Versions)) {
		versions = append(versions, name+" "+rep.Versions[name])
	}
	fmt.Fprintf(&b, "%s.\n\n", strings.Join(versions, ", "))

	rows := [][]string{{"figure", "unit", "N", "p50", "p95", "p99", "against", "p50", "p95", "p99", "ratio", "target", "reached"}}
	for _, f := range rep.Figures {
		row := []string{f.Name, f.Unit}
		row = append(row, f.Orch.cells(true)...)
		row = append(row, orNone(f.Against))
		row = append(row, f.Floor.cells(false)...)
		ratio, reached := none, none
		if f.Ratio != nil {
			ratio = fmt.Sprintf("%.2f", *f.Ratio)
		}
		if f.Reached != nil {
			reached = map[bool]string{true: "yes", false: "**no**"}[*f.Reached]
		}
		rows = append(rows, append(row, ratio, orNone(f.Target), reached))
	}
	writeTable(&b, rows)

	if len(rep.Steps) > 0 {
		b.WriteString("\nWhere the time goes (medians, ms; longest step first):\n\n")
		rows = [][]string{{"operation", "total", "steps"}}
		for _, o := range rep.Steps {
			var steps []string
			for _, st := range o.Steps {
				steps = append(steps, fmt.Sprintf("%s %.1f", st.Name, st.P50))
			}
			rows = append(rows, []string{o.Operation, fmt.Sprintf("%.1f", o.Total), strings.Join(steps, ", ")})
		}
		writeTable(&b, rows)
	}
	if len(rep.CPU) > 0 {
		b.WriteString("\nWhose CPU time it takes (ms each; busy: of all cores, by whomever):\n\n")
		rows = [][]string{append(append([]string{"what"}, cpuParts...), "together", "busy")}
		for _, split := range rep.CPU {
			row, sum := []string{split.What}, 0.0
			for _, part := range cpuParts {
				row = append(row, fmt.Sprintf("%.3f", split.Each[part]))
				sum += split.Each[part]
			}
			rows = append(rows, append(row, fmt.Sprintf("%.3f", sum), fmt.Sprintf("%.0f %%", 100*split.Busy)))
		}
		writeTable(&b, rows)
	}
	b.WriteString("\n")
	for _, note := range rep.Notes {
		fmt.Fprintf(&b, "- %s\n", note)
	}
	return b.String()
}

// partsOf names the parts that a report is of.
func partsOf(rep *report) string {
	if len(rep.Parts) == 0 {
		return ""
	}
	return " (" + strings.Join(rep.Parts, ", ") + ")"
}

// cells are the numbers of a summary for the table, a single value only once.
func (s *summary) cells(count bool) []string {
	cells := []string{none, none, none}
	n := none
	if s != nil {
		n = fmt.Sprint(s.N)
		cells[0] = fmt.Sprintf("%.1f", s.P50)
		if s.N > 1 {
			cells[1], cells[2] = fmt.Sprintf("%.1f", s.P95), fmt.Sprintf("%.1f", s.P99)
		}
	}
	if count {
		return append([]string{n}, cells...)
	}
	return cells
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// writeTable writes a Markdown table; the first row is its head.
func writeTable(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(b, "| %s%s ", cell, strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range width {
				fmt.Fprintf(b, "|%s", strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
}
