package commands

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

const (
	// late is how much later than the newest row another row may appear: counted denials
	// are written with a delay, with the minute that they belong to, and the clocks of
	// replicas differ.
	late = 90 * time.Second
	// patience is how long the end of a row is awaited; after that, its replica is assumed
	// to have crashed.
	patience = 15 * time.Minute
	pageSize = 1000 // the maximum that the service returns
)

// tail prints rows in the order in which they began.
type tail struct {
	in     *invocation
	filter client.AuditFilter
	seen   map[int64]client.AuditEntry // rows that may still appear or change
	newest time.Time
}

// begin prints the newest rows, at most most of them unless that is 0. With follow it also
// remembers older rows that may change.
func (t *tail) begin(ctx context.Context, most int, follow bool) error {
	f := t.filter
	f.Limit = pageSize
	if most > 0 && !follow {
		f.Limit = min(most, pageSize)
	}
	var rows []client.AuditEntry
	for e, err := range t.in.client.AllAudit(ctx, f) {
		if err != nil {
			return err
		}
		wanted := most == 0 || len(rows) < most
		if !wanted && (!follow || e.Timestamp.Before(t.newest.Add(-late))) {
			break
		}
		t.note(e)
		if wanted {
			rows = append(rows, e)
		}
	}
	if len(rows) == 0 && !follow && !t.in.JSON {
		_, err := fmt.Fprintln(t.in.Env.Out, "no rows")
		return err
	}
	return t.print(rows)
}

func (t *tail) note(e client.AuditEntry) {
	t.seen[e.ID] = e
	if e.Timestamp.After(t.newest) {
		t.newest = e.Timestamp
	}
}

// follow prints new rows until interrupted.
func (t *tail) follow(ctx context.Context) error {
	err := t.in.poll(ctx, "audit tail", func(ctx context.Context) (bool, error) { return false, t.poll(ctx) })
	if ctx.Err() != nil {
		return nil // the regular end
	}
	return err
}

// poll prints new rows, and rows that have ended since.
func (t *tail) poll(ctx context.Context) error {
	f := t.filter
	f.Limit = pageSize
	if from := t.from(); from.After(f.Since) {
		f.Since = from
	}
	var rows []client.AuditEntry
	for e, err := range t.in.client.AllAudit(ctx, f) {
		if err != nil {
			return err
		}
		if before, known := t.seen[e.ID]; !known || !over(before) && over(e) {
			rows = append(rows, e)
		}
	}
	for _, e := range rows {
		t.note(e)
	}
	from := t.from()
	maps.DeleteFunc(t.seen, func(_ int64, e client.AuditEntry) bool { return e.Timestamp.Before(from) })
	return t.print(rows)
}

// from returns when the first row began that may still appear or change.
func (t *tail) from() time.Time {
	if t.newest.IsZero() {
		return t.newest
	}
	from := t.newest.Add(-late)
	for _, e := range t.seen {
		if !over(e) && e.Timestamp.Before(from) && e.Timestamp.After(t.newest.Add(-patience)) {
			from = e.Timestamp
		}
	}
	return from
}

// over reports whether a row's change has ended.
func over(e client.AuditEntry) bool { return e.DurationMS != nil }

// print prints rows that are sorted newest first.
func (t *tail) print(rows []client.AuditEntry) error {
	for _, e := range slices.Backward(rows) {
		if t.in.JSON {
			if err := t.in.PrintJSON(e, ""); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintln(t.in.Env.Out, line(e)); err != nil {
			return err
		}
	}
	return nil
}

// line formats a row in columns of fixed width, because later rows are not known yet.
func line(e client.AuditEntry) string {
	took, outcome := "...", "in progress"
	if over(e) {
		took, outcome = fmt.Sprint(*e.DurationMS, " ms"), e.Outcome
	} else if e.Outcome != audit.OutcomeInterrupted {
		took, outcome = cmdline.None, e.Outcome
	}
	var details []string
	for _, name := range slices.Sorted(maps.Keys(e.Metadata)) {
		details = append(details, fmt.Sprintf("%s=%v", name, e.Metadata[name]))
	}
	return strings.TrimRight(fmt.Sprintf("%s  %-20s  %-22s  %9s  %-12s  %s  %s", cmdline.Cell(e.Timestamp), cmdline.Cell(e.Action), cmdline.Cell(outcome), took,
		cmdline.Cell(e.Actor), cmdline.Cell(e.UserID), cmdline.Clean(strings.Join(details, " "))), " ")
}
