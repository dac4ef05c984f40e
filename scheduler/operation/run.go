package operation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// KillGrace is the kill_timeout of the engine's job (SPEC section 4): how
	// long a process may take to end after SIGTERM.
	KillGrace = 30 * time.Second
	// KillMargin is for Nomad to notice and tell that the process is gone.
	KillMargin = 10 * time.Second
	// VolumeTimeout bounds the wait for a new host volume, which takes 6 to
	// 10 s on an ordinary client (measured).
	VolumeTimeout = 45 * time.Second
)

var (
	// ErrDetour is of a step that named the next one itself.
	ErrDetour = errors.New("the operation takes a detour")
	// ErrRelocated is of a step that gave the row another identity, and wrote that.
	ErrRelocated = errors.New("the engine is being placed on another node")
	// ErrReread says that the row is still this operation's, but another one than it knew. It
	// goes on from what is stored.
	ErrReread = errors.New("scheduler: the row was read again")
	// ErrSuperseded says that somebody else has the row now: this operation must touch
	// nothing more.
	ErrSuperseded = errors.New("scheduler: another operation has the engine now")
	// ErrTakenOver is the kind of ErrSuperseded in which another replica has
	// this very operation, or had it: what became of it is not this one's to
	// tell.
	ErrTakenOver = fmt.Errorf("%w: another replica took this one over", ErrSuperseded)
)

// Operation drives one row through one plan, in a goroutine of its own that the
// machine waits for.
type Operation struct {
	m *Machine
	// Row is the row as it is, or is to be written; only the steps may use it.
	Row *engine.Row
	Log hclog.Logger
	// ID is the row's operation as it was launched, and Began the whole of it; others may
	// read both.
	ID                string
	Began             engine.Operation
	productID, userID string

	work     Work
	cancel   context.CancelCauseFunc
	Answered chan struct{} // closed when Wait returns
	Ended    chan struct{} // closed when the goroutine has returned
	result   *engine.Row
	err      error

	// Removed: the row is gone, and nothing is left to write.
	Removed  bool
	unsaved  bool          // the row was advanced but that is not written yet
	undone   bool          // it was turned round
	recorded bool          // its audit row is complete
	timings  Timings       // for the log: the parts before the first step, then the steps
	writing  time.Duration // the time for the row after each step
}

const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
	// sessionGrace is how long an operation waits for a lost session to be made
	// anew before that counts as an error: a few renewals.
	sessionGrace = 15 * time.Second
)

// main runs steps until the operation is closed, its row is somebody else's, or
// ctx ends. What can be undone is undone at the first error; the rest goes
// forward, again and again, after its caller was told. The error says whose the
// row is, where that is somebody else's.
func (o *Operation) main(ctx context.Context) error {
	kind, began := o.Row.Op.Kind, time.Now()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := o.attempt(ctx)
		switch {
		case err == nil:
			Hit(kind, AtAnswered)
			answering := time.Now()
			o.answer(ctx, nil)
			o.timings.Took(timingRows, o.writing)
			o.timings.Since(timingRecord, answering)
			o.Log.Info("operation done", append([]any{"kind", o.m.Owner.Name(o), "ms", time.Since(began).Milliseconds()}, o.timings...)...)
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
			// The caller hears of it when nothing is left behind, or when that
			// does not succeed at once.
			if uerr := o.attempt(ctx); uerr == nil {
				Hit(kind, AtAnswered)
				if o.undone {
					o.answer(ctx, o.m.Owner.AsError(err))
				} else {
					o.answer(ctx, nil) // what was stored went forward after all
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

// cutShort says whether a destroy in this replica has cancelled an operation.
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
