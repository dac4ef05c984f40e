package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// curveReport is what is written to bench/results as <date>-<commit>-scale.
type curveReport struct {
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Commit  string    `json:"commit"`
	Machine machine   `json:"machine"`
	Levels  []*level  `json:"levels"`
	// Rows is measured when the last level could not be filled.
	Rows *rowsOnly `json:"rows_only,omitempty"`
}

func newCurveReport(ctx context.Context, began time.Time) *curveReport {
	return &curveReport{Began: began.UTC().Truncate(time.Second), Commit: commit(ctx), Machine: thisMachine()}
}

// cutStep is the step's name of a series that recorder.addSteps made.
func cutStep(series string) (string, bool) { return strings.CutPrefix(series, stepPrefix("provision")) }

// curveParts is the order of the parts in the table.
var curveParts = []string{"orch", "nomad server", "nomad clients", "consul server", "consul clients", "vault", "bench"}

// markdown is the report for people.
func (rep *curveReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Scale curve of %s, commit %s\n\n", rep.Began.Format(time.DateTime+" MST"), rep.Commit)
	m := rep.Machine
	fmt.Fprintf(&b, "%d cores (%s), %.0f MiB of memory, Linux %s, load average before %s. %.0f s.\n\n",
		m.Cores, m.CPU, m.MemoryMiB, m.Kernel, m.Load, rep.Seconds)
	fmt.Fprintf(&b, "One Nomad server, one Consul server, Vault, %d Nomad clients with a Consul agent each, and one replica of the service, all on this machine. "+
		"Engines are tasks of Nomad's mock_driver, which run no process; their job has no template and no Vault block, since nobody reads a key. "+
		"One HTTP server answers for all of them; the kernel leads their ports to it. Their checks tick every %d s. "+
		"Each node keeps %d ready volumes; %d callers fill a level. "+
		"The agents of the nodes have niceness %d, so that they take no core from the rest, as where each node has its own.\n\n", curveNodes, curveCheckEvery, curvePool, curveFillers, curveNice)

	rows := [][]string{{"figure", "unit"}}
	for _, l := range rep.Levels {
		rows[0] = append(rows[0], fmt.Sprint(l.Engines))
	}
	add := func(name, unit string, of func(*level) string) {
		row := []string{name, unit}
		for _, l := range rep.Levels {
			row = append(row, of(l))
		}
		rows = append(rows, row)
	}
	number := func(name, unit string, of func(*level) float64) {
		add(name, unit, func(l *level) string { return fmt.Sprintf("%.1f", of(l)) })
	}
	filled := func(name, unit string, of func(*level) float64) {
		add(name, unit, func(l *level) string {
			if l.Fill.N == 0 {
				return none
			}
			return fmt.Sprintf("%.1f", of(l))
		})
	}
	filled("provisions while filling", "1/s", func(l *level) float64 { return l.FillPerSecond })
	filled("— of each, p50", "ms", func(l *level) float64 { return l.Fill.P50 })
	filled("— of each, p99", "ms", func(l *level) float64 { return l.Fill.P99 })
	number(fmt.Sprintf("after that, until Nomad's server takes less than %d %% of a core", restedBelow), "s", func(l *level) float64 { return l.Rested })
	number(fmt.Sprintf("provision, one at a time (%d), p50", curveSingles), "ms", func(l *level) float64 { return l.Provision.P50 })
	number("— p99", "ms", func(l *level) float64 { return l.Provision.P99 })
	number(fmt.Sprintf("admit, %s, p50", curveAdmits), "ms", func(l *level) float64 { return l.Admit.P50 })
	number("— p99", "ms", func(l *level) float64 { return l.Admit.P99 })
	number("— of it this program's own lateness, p99", "ms", func(l *level) float64 { return l.AdmitLate.P99 })
	number(fmt.Sprintf("admits, %d callers without a pause for %s", callers, closedTime), "1/s", func(l *level) float64 { return l.Admits })
	number("GET /engines, 100 from anywhere, p99", "ms", func(l *level) float64 { return l.Page.P99 })
	number("GET /status, p99", "ms", func(l *level) float64 { return l.Status.P99 })
	number(fmt.Sprintf("a pass of reconcile (%d), p50", passesMeasured), "ms", func(l *level) float64 { return l.Reconcile.P50 })
	for _, part := range curveParts {
		number("VmRSS, "+part, "MiB", func(l *level) float64 { return l.RSS[part] })
	}
	number("Go heap of orch in use after a collection", "MiB", func(l *level) float64 { return l.Heap })
	number("VmHWM, the most that orch ever held", "MiB", func(l *level) float64 { return l.Peak })
	for _, part := range curveParts {
		filled("CPU per provision while filling, "+part, "ms", func(l *level) float64 { return l.CPU[part] })
	}
	for _, part := range curveParts {
		number("CPU while provisioning one at a time, "+part, "%", func(l *level) float64 { return l.ProvisionCPU[part] })
	}
	for _, part := range curveParts {
		number(fmt.Sprintf("CPU while %d admits/s, %s", curveAdmits.perSecond, part), "%", func(l *level) float64 { return l.AdmitCPU[part] })
	}
	for _, part := range curveParts {
		number("CPU at rest, "+part, "%", func(l *level) float64 { return l.Idle[part] })
	}
	number("row and index in Consul, names and values, of each engine", "B", func(l *level) float64 {
		rows, index := l.Stored.Rows["engines"], l.Stored.Rows["engine-ids"]
		return float64(rows.Bytes+index.Bytes) / float64(max(1, rows.N))
	})
	kib := func(name string, of func(stored) int64) {
		number(name, "KiB", func(l *level) float64 { return float64(of(l.Stored)) / 1024 })
	}
	kib("snapshot of Consul, compressed", func(s stored) int64 { return s.ConsulSnapshot })
	kib("snapshot of Nomad, compressed", func(s stored) int64 { return s.NomadSnapshot })
	kib("audit file", func(s stored) int64 { return s.Audit })
	writeTable(&b, rows)

	b.WriteString("\nSteps of a provision, one at a time (p50 / p99 of each by itself, ms):\n\n")
	var names []string
	for _, l := range rep.Levels {
		for name := range l.Steps {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	rows = rows[:1:1]
	for _, name := range names {
		add(name, "ms", func(l *level) string { return fmt.Sprintf("%.1f / %.1f", l.Steps[name].P50, l.Steps[name].P99) })
	}
	writeTable(&b, rows)
	rep.judge(&b)
	return b.String()
}

const (
	// curveTimes is how much slower the largest level may be than the smallest.
	curveTimes = 2
	// curveRSS is how much the service may hold at the largest level, in MiB.
	curveRSS = 120
)

// judge puts the largest level beside the targets, and says what went wrong.
func (rep *curveReport) judge(b *strings.Builder) {
	b.WriteString("\n")
	if n := len(rep.Levels); n > 0 {
		first, last := rep.Levels[0], rep.Levels[n-1]
		said := func(ok bool) string { return map[bool]string{true: "reached", false: "**not reached**"}[ok] }
		times := func(name string, from, to float64) {
			fmt.Fprintf(b, "- %s, p99 at %d engines against that at %d: %.2f ×; target ≤ %d ×: %s.\n", name, last.Engines, first.Engines, to/from, curveTimes, said(to/from <= curveTimes))
		}
		times("Provision", first.Provision.P99, last.Provision.P99)
		times("Admit", first.Admit.P99, last.Admit.P99)
		fmt.Fprintf(b, "- VmRSS of the service at %d engines: %.1f MiB; target ≤ %d MiB: %s.\n", last.Engines, last.RSS["orch"], curveRSS, said(last.RSS["orch"] <= curveRSS))
	}
	if r := rep.Rows; r != nil {
		fmt.Fprintf(b, "- Rows alone, of %d engines without jobs, in a service of their own: GET /engines p99 %.1f ms, GET /status p99 %.1f ms, VmRSS %.1f MiB.\n", r.Rows, r.Page.P99, r.Status.P99, r.RSS)
	}
	for _, l := range rep.Levels {
		if l.Short != "" {
			fmt.Fprintf(b, "- **The level of %d was not filled in its time**: %s.\n", l.Aim, l.Short)
		}
		if len(l.FillErrors) > 0 {
			fmt.Fprintf(b, "- Errors while filling up to %d, whose calls were made again: %v.\n", l.Aim, l.FillErrors)
		}
		if l.Failed > 0 {
			fmt.Fprintf(b, "- %d of %d admits failed at %d engines.\n", l.Failed, l.Admit.N, l.Engines)
		}
	}
}

// save writes the report as Markdown and JSON.
func (rep *curveReport) save() error {
	asJSON, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(resultsDir, rep.Began.Format(time.DateOnly)+"-"+rep.Commit+"-scale")
	if err := os.MkdirAll(resultsDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".md", []byte(rep.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(name+".json", append(asJSON, '\n'), 0o644)
}
