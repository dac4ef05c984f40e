package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// report is what is written to bench/results.
type report struct {
	Began    time.Time         `json:"began"`
	Seconds  float64           `json:"seconds"`
	Commit   string            `json:"commit"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Rounds   int               `json:"rounds"`
	Figures  []figure          `json:"figures"`
	Steps    []operationSteps  `json:"steps"`
	Notes    []string          `json:"notes"`
}

// figure is one line of the table.
type figure struct {
	Name string   `json:"name"`
	Unit string   `json:"unit"`
	Orch *summary `json:"orch"` // nil: not measured
	// Against is what it is compared with, Floor what that took, and Ratio
	// that of the medians.
	Against string   `json:"against,omitempty"`
	Floor   *summary `json:"floor,omitempty"`
	Ratio   *float64 `json:"ratio,omitempty"`
	Target  string   `json:"target,omitempty"`
	Reached *bool    `json:"reached,omitempty"`
}

// operationSteps says where the time of an operation goes: medians in ms,
// longest first.
type operationSteps struct {
	Operation string  `json:"operation"`
	Total     float64 `json:"total"`
	Steps     []step  `json:"steps"`
}

type step struct {
	Name string  `json:"name"`
	P50  float64 `json:"p50"`
}

func newReport(ctx context.Context, began time.Time, rounds int) *report {
	return &report{Began: began.UTC().Truncate(time.Second), Commit: commit(ctx), Machine: thisMachine(), Rounds: rounds}
}

// describe adds what is known once everything runs.
func (rep *report) describe(ctx context.Context, r *rig) (err error) {
	rep.Notes = []string{
		"Percentiles by nearest rank over single measurements, after warm-up rounds that are not counted; ratios are of medians. Each operation is measured right beside what it is compared with, in turns the one or the other first.",
		"By hand: the same rendered job, its volume ready and its variable written before the clock starts; registered with Nomad's API, its address learnt by a blocking query, its port asked every 2 ms.",
		"Before each provision the service's pool is full of ready volumes. Engines get no provider keys, so Vault takes no part in their boot on either side.",
		"Own share: what the caller of a provision waits, less the service's register and boot steps. Steps are the service's own log; " + betweenSteps + " is what is in none of them.",
	}
	if r.noDocker != nil {
		rep.Notes = append(rep.Notes, "Docker was not measured: "+r.noDocker.Error()+".")
	}
	rep.Versions, err = versionsOf(ctx, r)
	return err
}

// fill makes the figures of what was recorded.
func (rep *report) fill(rec recorder, fleet fleetResult, scale scaleResult) {
	const byHand = "Nomad by hand"
	ratio := func(name, series, against, floor string, target float64) {
		f := figure{Name: name, Unit: "ms", Orch: rec.summary(series), Against: against, Floor: rec.summary(floor)}
		if f.Orch != nil && f.Floor != nil {
			q := f.Orch.P50 / f.Floor.P50
			f.Ratio = &q
			f.judge(q, target, "≤ %g ×")
		} else if target > 0 {
			f.Target = fmt.Sprintf("≤ %g ×", target)
		}
		rep.Figures = append(rep.Figures, f)
	}
	median := func(name, series string, target float64) {
		f := figure{Name: name, Unit: "ms", Orch: rec.summary(series)}
		if f.Orch != nil {
			f.judge(f.Orch.P50, target, "p50 ≤ %g ms")
		}
		rep.Figures = append(rep.Figures, f)
	}
	ratio("provision → usable, raw_exec", rawProvision, byHand, rawProvisionHand, 1.5)
	median("— of it orch's own share", rawOwn, 30)
	ratio("— of it boot", rawBoot, byHand, rawBootHand, 0)
	ratio("provision → usable, docker", dockProvision, "docker run", dockRun, 1.5)
	ratio("— the same", dockProvision, byHand, dockProvisionHand, 0)
	median("— of it orch's own share", dockOwn, 30)
	ratio("— of it boot", dockBoot, byHand, dockBootHand, 0)
	ratio("stop → process gone", rawStop, byHand, rawStopHand, 1.3)
	ratio("start → usable", rawStart, byHand, rawStartHand, 0)
	median("destroy", rawDestroy, 0)
	median("rotate-key, engine reloads", rotateReload, 150)
	median("rotate-key, engine restarts", rotateRestart, 0)

	bare := summarize(fleet.bare.latency)
	openLoop := func(name string, res readResult) {
		reads := summarize(res.latency)
		f := figure{Name: fmt.Sprintf("%s, %d/s open loop for %s", name, readRate, readTime), Unit: "ms", Orch: &reads, Against: "one Consul read", Floor: &bare}
		f.judge(reads.P99, 5, "p99 ≤ %g ms")
		late := summarize(res.late)
		rep.Notes = append(rep.Notes, fmt.Sprintf("%s: timed from the moment each call was due; of that this program itself was late by p50 %.2f, p99 %.2f ms.", name, late.P50, late.P99))
		if failed := res.failed; len(failed) > 0 {
			no := false
			f.Reached = &no
			rep.Notes = append(rep.Notes, fmt.Sprintf("%d of %d calls failed, the first with: %v.", len(failed), reads.N, failed[0]))
		}
		rep.Figures = append(rep.Figures, f)
	}
	openLoop("GET /engines/{user_id}", fleet.reads)
	openLoop("admit of a running engine", fleet.admits)
	rep.addClosed(fleet.admitted, fleet.direct)
	listed := func(name string, values []float64) {
		sum := summarize(values)
		f := figure{Name: fmt.Sprintf("%s, %d engines", name, rowsAtScale), Unit: "ms", Orch: &sum}
		f.judge(sum.P99, 50, "p99 ≤ %g ms")
		rep.Figures = append(rep.Figures, f)
	}
	listed("GET /engines, 100 from anywhere", scale.page)
	listed("GET /engines, the 41st 100 of a status", scale.filtered)
	listed("GET /status", scale.status)
	memory := func(when string, mib float64) {
		f := figure{Name: "VmRSS of the service, " + when, Unit: "MiB", Orch: &summary{N: 1, P50: mib, P95: mib, P99: mib}}
		f.judge(mib, 60, "≤ %g MiB")
		rep.Figures = append(rep.Figures, f)
	}
	memory(fmt.Sprintf("%d engines, after the reads", fleetSize), fleet.running)
	memory("at the end", fleet.end)
	memory(fmt.Sprintf("%d more rows", rowsAtScale), scale.running)
	for _, operation := range []string{rawProvision, rawProvisionHand, dockProvision, dockProvisionHand, dockRun, rawStop, rawStopHand, rawStart, rawStartHand, rawDestroy, rotateReload, rotateRestart} {
		rep.addSteps(rec, operation)
	}
}

// summary of a series; nil when it was not measured.
func (r recorder) summary(series string) *summary {
	if len(r[series]) == 0 {
		return nil
	}
	s := summarize(r[series])
	return &s
}

// judge compares a value with its target; 0 is none.
func (f *figure) judge(value, target float64, format string) {
	if target == 0 {
		return
	}
	reached := value <= target
	f.Target, f.Reached = fmt.Sprintf(format, target), &reached
}

func (rep *report) addSteps(rec recorder, operation string) {
	total := rec.summary(operation)
	if total == nil {
		return
	}
	o := operationSteps{Operation: operation, Total: total.P50}
	for _, series := range slices.Sorted(maps.Keys(rec)) {
		if name, ok := strings.CutPrefix(series, stepPrefix(operation)); ok {
			o.Steps = append(o.Steps, step{name, summarize(rec[series]).P50})
		}
	}
	slices.SortStableFunc(o.Steps, func(a, b step) int {
		switch {
		case a.P50 > b.P50:
			return -1
		case a.P50 < b.P50:
			return 1
		}
		return 0
	})
	rep.Steps = append(rep.Steps, o)
}

// resultsDir is where the reports are kept, in the checkout.
const resultsDir = "bench/results"

// save writes the report as <date>-<commit>.md and .json, whole or not at all.
func (rep *report) save() error {
	asJSON, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(resultsDir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(resultsDir, rep.Began.Format(time.DateOnly)+"-"+rep.Commit)
	for ext, text := range map[string]string{".md": rep.markdown(), ".json": string(asJSON) + "\n"} {
		tmp := name + ext + ".tmp"
		if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Rename(tmp, name+ext); err != nil {
			return err
		}
	}
	return nil
}
