package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/operation"
)

// work is what the steps of one operation share besides the operation itself.
type work struct {
	*operation.Operation
	s *Scheduler

	registeredAt time.Time
	bootTook     time.Duration   // from the registration to the first healthy response
	paused       bool            // it has frozen its engine, or resumed a frozen one
	tried        map[string]bool // nodes that could not place the engine
	noPlace      error           // the error of the last of them
	ports        int             // number of ports that other processes used
	// quietAt is the index of the job after quiesce.
	quietAt uint64
	// refusedAt is the CreateIndex of the evaluation in which Nomad last reported that it
	// has no capacity.
	refusedAt uint64
}

// driving is the scheduler as the owner of operations.
type driving struct{ s *Scheduler }

func (d driving) MayTakeOver() bool { return d.s.Ready() == nil && d.s.guard.OK() }

func (d driving) Whole(ctx context.Context) bool { return d.s.guard.Forward(ctx) }

func (d driving) Work(o *operation.Operation) operation.Work {
	return &work{Operation: o, s: d.s, tried: map[string]bool{}}
}

func (d driving) AsError(err error) *engine.Error { return AsError(err) }

func (d driving) ReasonOf(err error) string { return reasonOf(err) }

func (d driving) Abandon(ctx context.Context, auditID int64, began time.Time, err error) {
	d.s.abandon(ctx, auditID, began, err)
}

// Name distinguishes the claim of a warm engine from other provisions.
func (d driving) Name(o *operation.Operation) string {
	if o.Began.Step == stepOwn && o.Row.Unlabelled {
		return "warm claim"
	}
	return string(o.Began.Kind)
}

// Record completes the audit row of the operation with the result for its caller.
func (d driving) Record(ctx context.Context, w operation.Work, err error) {
	o := w.(*work)
	op := o.Began
	c := audit.Completion{Outcome: outcome(err), EngineID: o.Row.EngineID, Duration: time.Since(op.BeganAt)}
	switch {
	case errors.Is(err, operation.ErrSuperseded):
		c.Outcome = string(engine.EngineBusy)
	case err == nil && op.Undo != "": // taken over from an owner that was undoing it
		c.Outcome = op.Undo
	}
	if o.bootTook > 0 {
		c.Metadata = map[string]any{"boot_ms": o.bootTook.Milliseconds()}
	}
	if err == nil && op.Step == stepOwn && o.Row.Unlabelled {
		c.Metadata = map[string]any{"warm": true}
	}
	if o.paused {
		c.Metadata = map[string]any{"paused": true}
	}
	if digest := o.s.Pinned(o.Row); digest != "" && starts(op.Kind) {
		if c.Metadata == nil {
			c.Metadata = map[string]any{}
		}
		c.Metadata["image_digest"] = digest
	}
	if op.Action == audit.ActionAutoRestartStart {
		o.recordRestart(ctx, c)
	}
	if op.Kind == engine.OpDrill {
		c.Metadata = o.drilled()
	}
	o.s.complete(ctx, op.AuditID, c)
}

// recordRestart records the result of an automatic restart before its own row is completed,
// so that a crash in between can only record it twice.
func (o *work) recordRestart(ctx context.Context, c audit.Completion) {
	e := audit.Entry{
		Timestamp: time.Now().UTC(), ProductID: o.Row.ProductID, UserID: o.Row.UserID, EngineID: o.Row.EngineID,
		Action: audit.ActionAutoRestartSuccess, Actor: actorSystem, Outcome: c.Outcome, Metadata: c.Metadata,
	}
	if c.Outcome != audit.OutcomeOK {
		e.Action = audit.ActionAutoRestartFailed
	}
	o.s.persist(ctx, e.Action+" of "+e.EngineID, func(ctx context.Context) error { return o.s.audit.Record(ctx, e) })
}
