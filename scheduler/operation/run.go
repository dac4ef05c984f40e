package operation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/internal/traces"
)

const (
	// KillGrace is the kill_timeout of the engine's job: how long a process may take to end
	// after SIGTERM.
	KillGrace = 30 * time.Second
	// KillMargin is the time for Nomad to notice and report the end of the process.
	KillMargin = 10 * time.Second
	// VolumeTimeout limits the wait for a new host volume, which takes 6 to 10 s on an
	// ordinary client (measured).
	VolumeTimeout = 45 * time.Second
	// BrainTimeout limits the copy and the transfer of a brain.
	BrainTimeout = time.Hour
)

var (
	// ErrDetour means that the step has chosen the next step itself.
	ErrDetour = errors.New("the operation continues at another step")
	// ErrRelocated means that the row has another identity, and already contains it.
	ErrRelocated = errors.New("the engine is being placed on another node")
	// ErrReread means that the row still belongs to this operation, but differs from its
	// last known version. The operation continues with the stored row.
	ErrReread = errors.New("scheduler: the row has changed and was read again")
	// ErrSuperseded means that another operation or replica has the row; this operation
	// must not change anything more.
	ErrSuperseded = errors.New("scheduler: another operation has the engine now")
	// ErrTakenOver is the kind of ErrSuperseded in which another replica has this same
	// operation, or had it: only that replica knows its result.
	ErrTakenOver = fmt.Errorf("%w: another replica took this one over", ErrSuperseded)
)

// Operation runs one row through one plan, in its own goroutine, which the machine waits
// for.
type Operation struct {
	m *Machine
	// Row is the current row, or the next one to write; only the steps may use it.
	Row *engine.Row
	Log hclog.Logger
	// ID is the id of the launched operation in the row, and Began a copy of that
	// operation; other goroutines may read both.
	ID                string
	Began             engine.Operation
	productID, userID string

	work     Work
	cancel   context.CancelCauseFunc
	Answered chan struct{} // closed when Wait returns
	Ended    chan struct{} // closed when the goroutine has returned
	result   *engine.Row
	err      error

	// Removed: the row is gone, and there is nothing more to write.
	Removed  bool
	unsaved  bool          // the row has changed but is not written yet
	undone   bool          // it is being undone
	failed   error         // why it was undone, when that is done
	recorded bool          // its audit row is complete
	timings  Timings       // for the log: the parts before the first step, then the steps
	before   int           // number of the parts before the first step
	span     traces.Span   // of the whole operation
	writing  time.Duration // time for writing the row after each step
}

const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
	// sessionGrace is how long an operation waits for a new session after it lost one,
	// before that counts as an error: a few renewals.
	sessionGrace = 15 * time.Second
)

// main runs steps until the operation is closed, another operation has its row, or ctx
// ends. An operation that can be undone is undone at the first error; others are retried
// until they succeed, after their caller got the error. The returned error says who has the
// row, if it is another operation.
func (o *Operation) main(ctx context.Context) error {
	kind, began := o.Row.Op.Kind, time.Now()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := o.attempt(ctx)
		switch {
		case err == nil:
			Hit(kind, AtAnswered)
			answering := time.Now()
			o.answer(ctx, o.failed) // somebody else may have written that it is undone
			o.timings.Took(timingRows, o.writing)
			o.timings.Since(timingRecord, answering)
			o.Log.Info("operation done", append([]any{"kind", o.m.Owner.Name(o), "ms", time.Since(began).Milliseconds()}, o.timings...)...)
			if o.err == nil {
				o.outcome(began, nil)
			}
			return nil
		case errors.Is(err, ErrSuperseded):
			return err
		case cutShort(ctx):
			return ErrSuperseded
		case ctx.Err() != nil:
			o.tell(elsewhere(err))
			return nil
		}
		o.Log.Warn("operation failed at a step", "step", o.step(), "error", err)
		undone := o.undo(err)
		switch {
		case undone && o.waitsForUndo(err):
			// The caller gets the error when the operation is undone, or at once if undoing
			// does not succeed at once.
			if uerr := o.attempt(ctx); uerr == nil {
				Hit(kind, AtAnswered)
				if o.undone {
					o.answer(ctx, o.m.Owner.AsError(err))
				} else {
					o.answer(ctx, nil) // the stored operation continued after all
				}
				return nil
			} else if errors.Is(uerr, ErrSuperseded) {
				return uerr
			} else if cutShort(ctx) {
				return ErrSuperseded
			}
		case undone:
			o.refuse(ctx, o.m.Owner.AsError(err))
			continue
		}
		o.refuse(ctx, o.m.Owner.AsError(err))
		if !pause.For(ctx, wait) {
			if cutShort(ctx) {
				return ErrSuperseded
			}
			return nil
		}
	}
}

// cutShort reports whether a destroy in this replica has cancelled an operation.
func cutShort(ctx context.Context) bool { return errors.Is(context.Cause(ctx), ErrSuperseded) }

// Interrupt ends an operation for one that supersedes it in this replica: it touches
// nothing more.
func (o *Operation) Interrupt() { o.cancel(ErrSuperseded) }

func (o *Operation) step() string {
	if o.Row.Op == nil {
		return ""
	}
	return o.Row.Op.Step
}
