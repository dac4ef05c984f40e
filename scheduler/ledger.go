package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// completeWithin bounds how long an answer waits for its audit row, so that
	// whoever has the answer finds it there.
	completeWithin = time.Second
	// completeAgain is the longest wait between two tries to complete a row
	// while the database is away.
	completeAgain = 15 * time.Second
)

// Actors that are not products (SPEC section 9).
const (
	actorAdmin  = "admin"
	actorSystem = "system" // nobody asked for it
)

// begin writes the audit row of a change of an engine before the change is made:
// without a row nothing is touched (BACKEND_UNAVAILABLE). details may be nil.
func (s *Scheduler) begin(ctx context.Context, row *engine.Row, action, actor string, details map[string]any) (int64, error) {
	return s.audit.Begin(ctx, audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID,
		Action: action, Actor: actor, RequestID: RequestID(ctx), Metadata: details,
	})
}

// pendingEntry is the audit row of a change that is tried until nobody else changes the
// engine meanwhile: one row for all tries.
type pendingEntry struct {
	id    int64
	began time.Time
}

// drop completes the row of a change that was refused, if no operation has it.
func (s *Scheduler) drop(ctx context.Context, d *pendingEntry, err error) {
	s.abandon(ctx, d.id, d.began, err)
	*d = pendingEntry{}
}

// abandon completes the row of a change that was refused before an operation
// had it.
func (s *Scheduler) abandon(ctx context.Context, id int64, began time.Time, err error) {
	s.complete(ctx, id, audit.Completion{Outcome: outcome(err), Duration: time.Since(began)})
}

// outcome is what the audit log keeps of an error: its code.
func outcome(err error) string {
	if err == nil {
		return audit.OutcomeOK
	}
	return string(AsError(err).Code)
}

// complete completes an audit row, in the background when that does not succeed
// at once: the change was made, and its caller does not wait for its record.
func (s *Scheduler) complete(ctx context.Context, id int64, c audit.Completion) {
	if id == 0 {
		return
	}
	s.persist(ctx, fmt.Sprintf("row %d, %s", id, c.Outcome), func(ctx context.Context) error { return s.audit.Complete(ctx, id, c) })
}

// persist writes to the audit log what was done, in the background when that
// does not succeed at once.
func (s *Scheduler) persist(ctx context.Context, what string, write func(context.Context) error) {
	ctx = context.WithoutCancel(ctx)
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, completeWithin)
		defer cancel()
		return write(ctx)
	}
	err := try()
	if err == nil {
		return
	}
	lacks := func() {
		s.log.Error("the audit log lacks what was done", "what", what, "request_id", RequestID(ctx), "error", err)
	}
	later := s.background(func(base context.Context) {
		// For as long as it takes: no more rows wait than operations were under
		// way when the database went, since none begins without it.
		for wait := completeWithin; pause.For(base, wait); wait = min(2*wait, completeAgain) {
			if err = try(); err == nil {
				return
			}
			if errors.Is(err, audit.ErrNotFound) {
				break // older than the log keeps rows
			}
		}
		lacks()
	})
	if !later { // Run does not wait for more
		lacks()
	}
}

// record completes the audit row of the operation with what its caller hears.
func (o *operation) record(ctx context.Context, err error) {
	op := o.began
	c := audit.Completion{Outcome: outcome(err), EngineID: o.row.EngineID, Duration: time.Since(op.BeganAt)}
	switch {
	case errors.Is(err, errSuperseded):
		c.Outcome = string(engine.EngineBusy)
	case err == nil && op.Undo != "": // taken over from an owner that was undoing it
		c.Outcome = op.Undo
	}
	if o.bootTook > 0 {
		c.Metadata = map[string]any{"boot_ms": o.bootTook.Milliseconds()}
	}
	if err == nil && op.Step == stepOwn && o.row.Unlabelled {
		c.Metadata = map[string]any{"warm": true}
	}
	if o.paused {
		c.Metadata = map[string]any{"paused": true}
	}
	if digest := o.s.Pinned(o.row); digest != "" && starts(op.Kind) {
		if c.Metadata == nil {
			c.Metadata = map[string]any{}
		}
		c.Metadata["image_digest"] = digest
	}
	if op.Action == audit.ActionAutoRestartStart {
		o.recordRestart(ctx, c)
	}
	o.s.complete(ctx, op.AuditID, c)
}

// recordRestart writes how a restart that nobody asked for ended, before its own
// row is completed: a crash between the two can only tell it twice.
func (o *operation) recordRestart(ctx context.Context, c audit.Completion) {
	e := audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: o.row.ProductID, UserID: o.row.UserID, EngineID: o.row.EngineID,
		Action: audit.ActionAutoRestartSuccess, Actor: actorSystem, Outcome: c.Outcome, Metadata: c.Metadata,
	}
	if c.Outcome != audit.OutcomeOK {
		e.Action = audit.ActionAutoRestartFailed
	}
	o.s.persist(ctx, e.Action+" of "+e.EngineID, func(ctx context.Context) error { return o.s.audit.Record(ctx, e) })
}
