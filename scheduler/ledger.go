package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/scheduler/operation"
)

const (
	// completeWithin limits how long a response waits for its audit row, so that a caller
	// with a response normally finds the row complete.
	completeWithin = time.Second
	// completeAgain is the maximum wait between two attempts to complete a row while the
	// database is unavailable.
	completeAgain = 15 * time.Second
)

// Actors that are not products.
const (
	actorAdmin  = "admin"
	actorSystem = "system" // nobody requested it
)

// adminActor returns the actor of an admin's call, which names the key of the call.
func adminActor(ctx context.Context) string { return cmp.Or(operation.Actor(ctx), actorAdmin) }

// begin writes the audit row of a change of an engine before the change is made: without
// the row nothing is touched (BACKEND_UNAVAILABLE). details may be nil.
func (s *Scheduler) begin(ctx context.Context, row *engine.Row, action, actor string, details map[string]any) (int64, error) {
	return s.audit.Begin(ctx, audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID,
		Action: action, Actor: actor, RequestID: operation.RequestID(ctx), Metadata: details,
	})
}

// pendingEntry is the audit row of a change that is retried while the engine is changed
// concurrently: one row for all attempts.
type pendingEntry struct {
	id    int64
	began time.Time
}

// drop completes the row of a refused change, if no operation has taken it over.
func (s *Scheduler) drop(ctx context.Context, d *pendingEntry, err error) {
	s.abandon(ctx, d.id, d.began, err)
	*d = pendingEntry{}
}

// abandon completes the row of a change that was refused before it became an operation.
func (s *Scheduler) abandon(ctx context.Context, id int64, began time.Time, err error) {
	s.complete(ctx, id, audit.Completion{Outcome: outcome(err), Duration: time.Since(began)})
}

// outcome returns the outcome in the audit log for an error: its code.
func outcome(err error) string {
	if err == nil {
		return audit.OutcomeOK
	}
	return string(AsError(err).Code)
}

// complete completes an audit row, in the background if that does not succeed at once: the
// change was made, and its caller does not wait for the row.
func (s *Scheduler) complete(ctx context.Context, id int64, c audit.Completion) {
	if id == 0 {
		return
	}
	s.persist(ctx, fmt.Sprintf("row %d, %s", id, c.Outcome), func(ctx context.Context) error { return s.audit.Complete(ctx, id, c) })
}

// persist writes to the audit log what was done, in the background if that does not succeed
// at once.
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
		s.log.Error("cannot write to the audit log what was done", "what", what, "request_id", operation.RequestID(ctx), "error", err)
	}
	later := s.ops.Background(func(base context.Context) {
		// It is retried as long as necessary. There are at most as many rows as operations
		// that were in progress when the database became unavailable, because none begins
		// without it.
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
	if !later { // Run no longer waits for background work
		lacks()
	}
}
