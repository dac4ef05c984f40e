package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

var (
	// errSuperseded: somebody else has the row now; this operation must touch
	// nothing more.
	errSuperseded = errors.New("scheduler: another operation has the engine now")
	// errTakenOver is the kind of errSuperseded in which another replica has
	// this very operation, or had it: what became of it is not this one's to
	// tell.
	errTakenOver = fmt.Errorf("%w: another replica took this one over", errSuperseded)
)

// operation drives one row through one plan, in a goroutine of its own that the
// scheduler waits for.
type operation struct {
	s   *Scheduler
	row *engine.Row
	log hclog.Logger
	// opID is the row's operation as it was launched; others may read it.
	opID              string
	productID, userID string
	began             engine.Operation // the operation as it was launched

	registeredAt time.Time
	bootTook     time.Duration // from the registration to the first healthy answer

	cancel   context.CancelCauseFunc
	answered chan struct{} // closed when err and engine are set
	ended    chan struct{} // closed when the goroutine has returned
	engine   *engine.Row
	err      error

	paused   bool            // it has frozen its engine, or woken one that was frozen
	unsaved  bool            // the row was advanced but that is not written yet
	undone   bool            // it was turned round
	removed  bool            // the row is gone: nothing is left to write
	recorded bool            // its audit row is complete
	tried    map[string]bool // nodes that could not place the engine
	noPlace  error           // what the last of them said
	ports    int             // that were taken by somebody else
	// quietAt is the index of the job as quiesce left it.
	quietAt uint64
	// refusedAt is the CreateIndex of the evaluation by which Nomad said last that
	// it has no place.
	refusedAt uint64
	timings   timings       // for the log: the parts before the first step, then the steps
	writing   time.Duration // the time for the row after each step
}

func engineKey(productID, userID string) string { return productID + "/" + userID }

// newOp is the operation that a row is to carry.
func (s *Scheduler) newOp(ctx context.Context, kind engine.OpKind, action string, from engine.State) *engine.Operation {
	return &engine.Operation{
		ID: strings.ToLower(rand.Text()), Kind: kind, Action: action, Step: plans[kind][0].name, Owner: s.replica.ID,
		BeganAt: time.Now().UTC(), Deadline: time.Now().UTC().Add(s.limit(kind)), From: from, RequestID: RequestID(ctx),
	}
}

// limit is how long an operation may take before its caller is told that it is
// not confirmed. A boot's own deadline begins when its job is registered.
func (s *Scheduler) limit(kind engine.OpKind) time.Duration {
	switch kind {
	case engine.OpRotateKey:
		return killGrace + s.opts.BootTimeout
	case engine.OpStop, engine.OpSleep, engine.OpDestroy:
		return killGrace + killMargin
	case engine.OpRecover:
		return s.opts.BootTimeout
	}
	return volumeTimeout + killGrace + killMargin
}

// LongestOperation bounds how long an operation's caller can wait for its
// answer: the server's write timeout follows from it.
func (s *Scheduler) LongestOperation() time.Duration {
	return max(s.limit(engine.OpProvision)+s.opts.BootTimeout, s.limit(engine.OpRotateKey)) + killGrace
}

// launch runs the operation that row carries and that this replica owns. It
// returns nil when the scheduler is stopping: another replica will run it.
func (s *Scheduler) launch(row *engine.Row, before ...any) *operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil || s.base.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(WithRequestID(s.base, row.Op.RequestID))
	o := &operation{
		s: s, row: row, opID: row.Op.ID, productID: row.ProductID, userID: row.UserID, began: *row.Op, timings: before, cancel: cancel, answered: make(chan struct{}), ended: make(chan struct{}), tried: map[string]bool{},
		log: s.log.With("op", string(row.Op.Kind), "engine_id", row.EngineID, "product_id", row.ProductID, "request_id", row.Op.RequestID),
	}
	key := engineKey(row.ProductID, row.UserID)
	if running := s.active[key]; running != nil && running.opID == o.opID {
		cancel(nil)
		return running // found by recoverOnce before whoever wrote it had its answer
	}
	s.active[key] = o
	s.ops.Go(func() {
		defer close(o.ended)
		defer cancel(nil)
		if err := o.main(ctx); err != nil {
			o.log.Info("operation superseded", "by", err)
			o.answer(ctx, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.active[key] == o {
			delete(s.active, key)
		}
	})
	return o
}

// background runs something that Run waits for, and says whether it does: not when the
// scheduler is stopping. Run waits only after it has ended base, so nothing is added to
// what it waits for.
func (s *Scheduler) background(do func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil || s.base.Err() != nil {
		return false
	}
	ctx := s.base
	s.ops.Go(func() { do(ctx) })
	return true
}

// running returns this replica's operation on an engine, or nil.
func (s *Scheduler) running(productID, userID string) *operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[engineKey(productID, userID)]
}

// open says whether new operations are accepted.
func (s *Scheduler) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil || s.draining {
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting or stopping; try again", RetryAfter: retryBackend}
	}
	return nil
}

// answer tells those who wait, once, and completes the audit row with what they
// hear, if that is this operation's to say.
func (o *operation) answer(ctx context.Context, err error) {
	if !o.recorded && !errors.Is(err, errTakenOver) {
		o.recorded = true
		if o.answeredAlready() {
			err = o.err
		}
		o.record(ctx, err)
	}
	o.tell(err)
}

// refuse tells of an error after which the operation goes on, and writes it into
// the audit row, while what is stored is surely this operation as it is here.
// Otherwise another replica may take over what is stored and end it differently:
// then that one completes the row, and who waits here hears only that the end is
// open.
func (o *operation) refuse(ctx context.Context, err error) {
	if o.answeredAlready() {
		return
	}
	if !o.unsaved && o.s.store.Verify(ctx, o.row) == nil {
		o.recorded = true
		o.record(ctx, err)
	} else if waitsForUndo(err) {
		err = elsewhere(err)
	}
	o.tell(err)
}

// tell tells those who wait, once. The audit row is left to whoever finishes
// the operation.
func (o *operation) tell(err error) {
	if o.answeredAlready() {
		return
	}
	o.engine, o.err = o.row.Clone(), err
	close(o.answered)
}

// wait returns what the operation answers.
func (o *operation) wait(ctx context.Context) (*engine.Row, error) {
	if o == nil {
		return nil, &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is stopping; try again", RetryAfter: retryBackend}
	}
	over, stop := impatience(ctx)
	defer stop()
	for {
		select {
		case <-o.answered:
			switch {
			case errors.Is(o.err, errTakenOver):
				return nil, elsewhere(o.err)
			case errors.Is(o.err, errSuperseded):
				return nil, engine.BusyWith(engine.OpDestroy)
			}
			return o.engine, o.err
		case <-over:
			row, err := o.s.store.Engine(ctx, o.productID, o.userID)
			if errors.Is(err, registry.ErrNotFound) {
				over = nil // it is about to be answered
				continue
			}
			if err != nil {
				return nil, err
			}
			return nil, &UnderWay{row}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// elsewhere is what a caller hears of an operation whose end another replica may
// decide.
func elsewhere(err error) *engine.Error {
	return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica cannot finish the operation now; it goes on, here or on another one: ask for the engine, or try again", Err: err, RetryAfter: retryBackend}
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
func (o *operation) main(ctx context.Context) error {
	kind, began := o.row.Op.Kind, time.Now()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := o.attempt(ctx)
		switch {
		case err == nil:
			hit(kind, atAnswered)
			answering := time.Now()
			o.answer(ctx, nil)
			o.timings.took(timingRows, o.writing)
			o.timings.since(timingRecord, answering)
			what := string(kind)
			if o.began.Step == stepOwn && o.row.Unlabelled {
				what = "warm claim"
			}
			o.log.Info("operation done", append([]any{"kind", what, "ms", time.Since(began).Milliseconds()}, o.timings...)...)
			return nil
		case errors.Is(err, errSuperseded):
			return err
		case cutShort(ctx):
			return errSuperseded
		case ctx.Err() != nil:
			o.tell(elsewhere(err))
			return nil
		}
		o.log.Warn("operation failed at a step", "step", o.step(), "error", err)
		undone := o.undo(err)
		switch {
		case undone && waitsForUndo(err):
			// The caller hears of it when nothing is left behind, or when that
			// does not succeed at once.
			if uerr := o.attempt(ctx); uerr == nil {
				hit(kind, atAnswered)
				if o.undone {
					o.answer(ctx, AsError(err))
				} else {
					o.answer(ctx, nil) // what was stored went forward after all
				}
				return nil
			} else if errors.Is(uerr, errSuperseded) {
				return uerr
			} else if cutShort(ctx) {
				return errSuperseded
			}
		case undone:
			o.refuse(ctx, AsError(err))
			continue
		}
		o.refuse(ctx, AsError(err))
		if !pause.For(ctx, wait) {
			if cutShort(ctx) {
				return errSuperseded
			}
			return nil
		}
	}
}

// cutShort says whether a destroy in this replica has cancelled an operation.
func cutShort(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errSuperseded) }

func (o *operation) step() string {
	if o.row.Op == nil {
		return ""
	}
	return o.row.Op.Step
}

// waitsForUndo says whether the caller's answer promises that the operation
// left nothing behind or at rest.
func waitsForUndo(err error) bool {
	switch AsError(err).Code {
	case engine.BackendUnavailable, engine.BackendError, engine.Internal:
		return false
	}
	return true
}
