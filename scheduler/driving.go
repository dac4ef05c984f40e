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
	bootTook     time.Duration   // from the registration to the first healthy answer
	paused       bool            // it has frozen its engine, or woken one that was frozen
	tried        map[string]bool // nodes that could not place the engine
	noPlace      error           // what the last of them said
	ports        int             // that were taken by somebody else
	// quietAt is the index of the job as quiesce left it.
	quietAt uint64
	// refusedAt is the CreateIndex of the evaluation by which Nomad said last that
	// it has no place.
	refusedAt uint64
}

// driving is what operations need of the scheduler.
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

// Name tells a warm engine's claim from another provision.
func (d driving) Name(o *operation.Operation) string {
	if o.Began.Step == stepOwn && o.Row.Unlabelled {
		return "warm claim"
	}
	return string(o.Began.Kind)
}

// Record completes the audit row of the operation with what its caller hears.
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
	o.s.complete(ctx, op.AuditID, c)
}

// recordRestart writes how a restart that nobody asked for ended, before its own
// row is completed: a crash between the two can only tell it twice.
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
