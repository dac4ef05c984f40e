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
	Parts    []string          `json:"parts"`
	Figures  []figure          `json:"figures"`
	Steps    []operationSteps  `json:"steps"`
	CPU      []cpuSplit        `json:"cpu"`
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
	if r.noDocker != nil {
		rep.note("Docker was not measured: %v.", r.noDocker)
	}
	rep.Versions, err = versionsOf(ctx, r)
	return err
}

func (rep *report) note(format string, args ...any) {
	rep.Notes = append(rep.Notes, fmt.Sprintf(format, args...))
}

func (rep *report) add(f figure) { rep.Figures = append(rep.Figures, f) }

// summary of a series; nil when it was not measured.
func (r recorder) summary(series string) *summary {
	if len(r[series]) == 0 {
		return nil
	}
	s := summarize(r[series])
	return &s
}

// single is a value that was measured once.
func single(v float64) *summary { return &summary{N: 1, P50: v, P95: v, P99: v} }

// judge compares a value with the most that it may be; 0 is no target.
func (f *figure) judge(value, most float64, format string) {
	if most == 0 {
		return
	}
	reached := value <= most
	f.Target, f.Reached = fmt.Sprintf(format, most), &reached
}

// judgeLeast compares a value with the least that it should be; 0 is no target.
func (f *figure) judgeLeast(value, least float64, format string) {
	if least == 0 {
		return
	}
	reached := value >= least
	f.Target, f.Reached = fmt.Sprintf(format, least), &reached
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

// save writes the report as <date>-<commit>.md and .json, whole or not at all; one
// of some parts alone has their names in its own.
func (rep *report) save(whole bool) error {
	if len(rep.Parts) == 0 {
		return nil
	}
	asJSON, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(resultsDir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(resultsDir, rep.Began.Format(time.DateOnly)+"-"+rep.Commit)
	if !whole {
		name += "-" + strings.Join(rep.Parts, "+")
	}
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
