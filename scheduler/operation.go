package scheduler

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/registry"
)

// step is one act of an operation. It is idempotent: after a crash the next
// owner does it again. What it learns it puts into the row, which is written
// before the next step begins.
type step struct {
	name string
	do   func(*operation, context.Context) error
}

// plans are the steps of every operation, in order. The names are in rows: a
// renamed step strands the operations of the version before.
var plans map[registry.OpKind][]step

// undoing are the steps that take an operation back. Kinds without any go
// forward only.
var undoing map[registry.OpKind][]step

// detours are steps outside the order of their kind's plan, which lead back into
// it or into undoing.
var detours map[registry.OpKind][]step

func init() { // not a literal: the steps refer to plans
	plans = map[registry.OpKind][]step{
		registry.OpProvision: {
			{"volume", (*operation).ensureVolume},
			{"key", (*operation).ensureKey},
			{"variable", (*operation).writeVariable},
			{"register", (*operation).register},
			{"boot", (*operation).boot},
		},
		registry.OpStart: {
			{"quiesce", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"variable", (*operation).writeVariable},
			{"register", (*operation).register},
			{"boot", (*operation).boot},
		},
		registry.OpStop: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
		},
		registry.OpSleep: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
		},
		registry.OpRecover: {
			{"boot", (*operation).boot},
		},
		registry.OpRestart: {
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"variable", (*operation).writeVariable},
			{"register", (*operation).register},
			{"boot", (*operation).boot},
		},
		registry.OpRotateKey: {
			{"new-key", (*operation).writeNewKey},
			{"variable", (*operation).writeVariable},
			{"proof", (*operation).proveRotation},
			{"retire", (*operation).retireOldKey},
		},
		registry.OpDestroy: {
			{"settle", (*operation).settle},
			// Nomad forgets a purged job's allocations at once, while their
			// processes still run: the process ends first.
			{"scale-down", (*operation).quiesce},
			{"drain", (*operation).awaitGone},
			{"purge", (*operation).purge},
			{"volume", (*operation).deleteVolume},
			{"variable", (*operation).deleteVariable},
			{"key", (*operation).deleteKey},
			{"row", (*operation).removeRow},
		},
	}
	detours = map[registry.OpKind][]step{
		registry.OpProvision: {{"relocate", (*operation).relocate}},
	}
	undoing = map[registry.OpKind][]step{
		registry.OpProvision: {{"undo-register", (*operation).quiesce}},
		registry.OpStart:     {{"undo-register", (*operation).quiesce}},
		registry.OpRotateKey: {{"undo-new-key", (*operation).leave}},
		registry.OpRecover:   {{"undo-recover", (*operation).leave}},
		registry.OpRestart:   {{"undo-register", (*operation).quiesce}},
	}
}

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
	row *registry.Engine
	log hclog.Logger
	// opID is the row's operation as it was launched; others may read it.
	opID  string
	began registry.Op // the operation as it was launched

	registeredAt time.Time
	bootTook     time.Duration // from the registration to the first healthy answer

	cancel   context.CancelCauseFunc
	answered chan struct{} // closed when err and engine are set
	ended    chan struct{} // closed when the goroutine has returned
	engine   *registry.Engine
	err      error

	unsaved  bool            // the row was advanced but that is not written yet
	removed  bool            // the row is gone: nothing is left to write
	recorded bool            // its audit row is complete
	tried    map[string]bool // nodes that could not place the engine
	noPlace  error           // what the last of them said
	took     []any           // step names and durations, for the log
}

func engineKey(productID, userID string) string { return productID + "/" + userID }

// newOp is the operation that a row is to carry.
func (s *Scheduler) newOp(ctx context.Context, kind registry.OpKind, action string, from registry.State) *registry.Op {
	return &registry.Op{
		ID: strings.ToLower(rand.Text()), Kind: kind, Action: action, Step: plans[kind][0].name, Owner: s.replica.ID,
		BeganAt: time.Now().UTC(), Deadline: time.Now().UTC().Add(s.limit(kind)), From: from, RequestID: RequestID(ctx),
	}
}

// limit is how long an operation may take before its caller is told that it is
// not confirmed. A boot's own deadline begins when its job is registered.
func (s *Scheduler) limit(kind registry.OpKind) time.Duration {
	switch kind {
	case registry.OpRotateKey:
		return killGrace + s.opts.BootTimeout
	case registry.OpStop, registry.OpSleep, registry.OpDestroy:
		return killGrace + killMargin
	case registry.OpRecover:
		return s.opts.BootTimeout
	}
	return volumeTimeout + killGrace + killMargin
}

// LongestOperation bounds how long an operation's caller can wait for its
// answer: the server's write timeout follows from it.
func (s *Scheduler) LongestOperation() time.Duration {
	return max(s.limit(registry.OpProvision)+s.opts.BootTimeout, s.limit(registry.OpRotateKey)) + killGrace
}

// launch runs the operation that row carries and that this replica owns. It
// returns nil when the scheduler is stopping: another replica will run it.
func (s *Scheduler) launch(row *registry.Engine) *operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil || s.base.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(WithRequestID(s.base, row.Op.RequestID))
	o := &operation{
		s: s, row: row, opID: row.Op.ID, began: *row.Op, cancel: cancel, answered: make(chan struct{}), ended: make(chan struct{}), tried: map[string]bool{},
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

// background runs something that Run waits for, unless the scheduler is stopping.
func (s *Scheduler) background(do func(context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base != nil && s.base.Err() == nil {
		ctx := s.base
		s.ops.Go(func() { do(ctx) })
	}
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
		return &Error{Code: BackendUnavailable, Message: "this replica is starting or stopping; try again", RetryAfter: retryBackend}
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

// refuse tells of an error after which the operation goes on. The audit row gets
// it while the operation is surely this replica's; else whoever ends the
// operation completes the row.
func (o *operation) refuse(ctx context.Context, err error) {
	if o.answeredAlready() {
		return
	}
	if o.s.store.Verify(ctx, o.row) == nil {
		o.recorded = true
		o.record(ctx, err)
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
func (o *operation) wait(ctx context.Context) (*registry.Engine, error) {
	if o == nil {
		return nil, &Error{Code: BackendUnavailable, Message: "this replica is stopping; try again", RetryAfter: retryBackend}
	}
	select {
	case <-o.answered:
		switch {
		case errors.Is(o.err, errTakenOver):
			return nil, elsewhere(o.err)
		case errors.Is(o.err, errSuperseded):
			return nil, busy(registry.OpDestroy)
		}
		return o.engine, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// elsewhere is what a caller hears of an operation that another replica ends.
func elsewhere(err error) *Error {
	return &Error{Code: BackendUnavailable, Message: "this replica cannot finish the operation; another one does", Err: err, RetryAfter: retryBackend}
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
			o.answer(ctx, nil)
			o.log.Info("operation done", append([]any{"kind", string(kind), "ms", time.Since(began).Milliseconds()}, o.took...)...)
			return nil
		case errors.Is(err, errSuperseded) || errors.Is(context.Cause(ctx), errSuperseded):
			if !errors.Is(err, errSuperseded) {
				return errSuperseded
			}
			return err
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
				o.answer(ctx, AsError(err))
				return nil
			} else if errors.Is(uerr, errSuperseded) {
				return uerr
			}
		case undone:
			o.refuse(ctx, AsError(err))
			continue
		}
		o.refuse(ctx, AsError(err))
		if !pause(ctx, wait) {
			return nil
		}
	}
}

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
	case BackendUnavailable, BackendError, Internal:
		return false
	}
	return true
}

// attempt runs the steps from the row's on, writing the row after each. A
// session that is lost is no error for a while: once there is one again the row
// says whose the operation is.
func (o *operation) attempt(ctx context.Context) error {
	var lost time.Time // when the session was first missed
	for {
		err := o.advance(ctx)
		if !errors.Is(err, registry.ErrNoSession) {
			lost = time.Time{}
		} else if lost.IsZero() {
			lost = time.Now()
		}
		switch {
		case errors.Is(err, errReread) && ctx.Err() == nil:
			o.unsaved = false // what is stored decides
		case !lost.IsZero() && time.Since(lost) < sessionGrace && pause(ctx, firstRetry):
		case err != nil:
			return err
		case o.removed || o.row.Op == nil && !o.unsaved:
			return nil
		}
	}
}

// advance runs the row's step and writes the row, if it carries an operation.
func (o *operation) advance(ctx context.Context) error {
	if o.unsaved {
		if err := o.write(ctx); err != nil {
			return err
		}
	}
	if o.row.Op == nil {
		return nil
	}
	kind, st, next, err := o.find()
	if err != nil {
		return err
	}
	hitStep(kind, st.name, atBefore)
	began := time.Now()
	err = st.do(o, ctx)
	o.took = append(o.took, st.name+"_ms", float64(time.Since(began).Microseconds())/1000)
	switch {
	case errors.Is(err, errDetour):
		o.unsaved = true
		return nil
	case errors.Is(err, errRelocated):
		hitStep(kind, st.name, atSaved)
		return nil
	case err != nil:
		return err
	}
	hitStep(kind, st.name, atDone)
	switch {
	case o.removed:
		return nil
	case next == "":
		o.finish()
	default:
		o.row.Op.Step = next
	}
	o.unsaved = true
	if err := o.write(ctx); err != nil {
		return err
	}
	hitStep(kind, st.name, atSaved)
	return nil
}

// find is the step that the row is at, and the name of the one after it.
func (o *operation) find() (kind registry.OpKind, st step, next string, err error) {
	kind = o.row.Op.Kind
	steps := plans[kind]
	if o.row.Op.Undo != "" && undoing[kind] != nil {
		steps = undoing[kind]
	}
	for i, st := range steps {
		if st.name != o.row.Op.Step {
			continue
		}
		if i+1 < len(steps) {
			next = steps[i+1].name
		}
		return kind, st, next, nil
	}
	for _, st := range detours[kind] {
		if st.name == o.row.Op.Step {
			return kind, st, "", nil
		}
	}
	return kind, step{}, "", fail(Internal, "the operation stopped at a step that this version does not know")
}

// write saves a row that was advanced.
func (o *operation) write(ctx context.Context) error {
	if err := o.save(ctx); err != nil {
		return err
	}
	o.unsaved = false
	return nil
}

// finish closes the operation in the row.
func (o *operation) finish() {
	op, row := o.row.Op, o.row
	row.Op = nil
	switch {
	case op.Kind == registry.OpRestart:
		// Its process ended: there is no way back to where it was.
		row.State, row.Reason, row.RestartedFor = registry.Running, "", op.EnvVersion
		if op.Undo != "" {
			row.State, row.Reason = registry.Failed, cmp.Or(op.Reason, reasonNotRestarted)
		}
	case op.Undo != "" && isBootOutcome(Code(op.Undo)):
		row.State, row.Reason = registry.Failed, op.Reason
	case op.Undo != "":
		row.State = op.From
		if op.From != registry.Failed {
			row.Desired = op.From
		}
	case op.Kind == registry.OpStop:
		row.State, row.Reason = registry.Stopped, ""
	case op.Kind == registry.OpSleep:
		row.State, row.Reason = registry.Sleeping, ""
	case op.Kind == registry.OpProvision || op.Kind == registry.OpStart || op.Kind == registry.OpRecover:
		row.State, row.Reason = registry.Running, ""
	}
	if row.State != registry.Running {
		row.URL, row.AllocID = "", ""
	}
	if undoing[op.Kind] != nil && op.Kind != registry.OpRotateKey {
		o.s.opts.Restart.settle(row, op, time.Now().UTC())
	}
}

func isBootOutcome(code Code) bool { return code == BootTimeout || code == EngineBootFailed }

// undo turns the operation round where its kind and step allow it, and says
// whether it did. The change is written before the next step.
func (o *operation) undo(err error) bool {
	op, code := o.row.Op, AsError(err).Code
	if op == nil || op.Undo != "" || undoing[op.Kind] == nil {
		return false
	}
	if op.Kind == registry.OpRotateKey && op.Step != plans[op.Kind][0].name {
		return false // the engine may have the new key already: only forward
	}
	if op.Kind == registry.OpRestart && !endsRestart(code) {
		return false
	}
	op.Undo, op.Reason = string(code), reasonOf(err)
	op.Step = undoing[op.Kind][0].name
	if op.Kind == registry.OpProvision && !isBootOutcome(code) {
		o.becomeDestroy()
	}
	o.unsaved = true
	return true
}

// becomeDestroy makes a provision that left nothing worth keeping remove
// itself.
func (o *operation) becomeDestroy() {
	o.row.State, o.row.Desired = registry.Destroying, registry.Destroying
	o.row.Op.Kind, o.row.Op.Step = registry.OpDestroy, "scale-down"
	o.row.Op.Deadline = time.Now().UTC().Add(o.s.limit(registry.OpDestroy))
}

// errReread: the row is still this operation's, but another one than it knew. It
// goes on from what is stored.
var errReread = errors.New("scheduler: the row was read again")

// save writes the row. A write whose answer was lost is recognised.
func (o *operation) save(ctx context.Context) error {
	err := o.s.store.Update(ctx, o.row)
	if !errors.Is(err, registry.ErrConflict) {
		return err
	}
	now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
	if err == nil && sameWrite(now, o.row) {
		o.row = now
		return nil
	}
	return o.lost(ctx, now, err)
}

// fence makes sure that the operation is still this replica's. Calls that the
// row cannot guard are made in this order: read an index, fence, then write by
// check-and-set at that index. Whoever takes the operation over moves the index
// before the operation is closed, so that a replica that was paused between the
// last two writes nothing.
func (o *operation) fence(ctx context.Context) error {
	kind, step := o.row.Op.Kind, o.row.Op.Step
	err := o.s.store.Verify(ctx, o.row)
	if errors.Is(err, registry.ErrConflict) {
		now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
		return o.lost(ctx, now, err)
	}
	if err == nil {
		hitStep(kind, step, atFenced)
	}
	return err
}

// whileOwned runs a wait, which ends when somebody else takes the row.
func (o *operation) whileOwned(ctx context.Context, wait func(context.Context) error) error {
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup
	watching.Go(func() { o.watchRow(watched, cancel) })
	err := wait(watched)
	taken := errors.Is(context.Cause(watched), errSuperseded) && ctx.Err() == nil
	cancel(nil)
	watching.Wait()
	if !taken {
		return err
	}
	now, err := o.s.store.Engine(ctx, o.row.ProductID, o.row.UserID)
	return o.lost(ctx, now, err)
}

// lost says what it means that the row is not the one that this operation wrote
// last: now and err are what reading it gave.
func (o *operation) lost(ctx context.Context, now *registry.Engine, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return errTakenOver
	case err != nil:
		return err
	case now.Op != nil && now.Op.ID == o.opID && now.Op.Owner == o.s.replica.ID:
		o.row = now
		return errReread
	case now.Op != nil && now.Op.Supersedes == o.s.replica.ID:
		o.acknowledge(ctx, now)
		return errSuperseded
	}
	return errTakenOver
}

// sameWrite says whether the stored row is the one that was to be written.
func sameWrite(stored, wanted *registry.Engine) bool {
	if stored.EngineID != wanted.EngineID || stored.State != wanted.State || (stored.Op == nil) != (wanted.Op == nil) {
		return false
	}
	if stored.Op == nil {
		return stored.KeyVersion == wanted.KeyVersion && stored.AllocID == wanted.AllocID
	}
	return stored.Op.ID == wanted.Op.ID && stored.Op.Owner == wanted.Op.Owner && stored.Op.Step == wanted.Op.Step &&
		stored.Op.Kind == wanted.Op.Kind && stored.Op.Undo == wanted.Op.Undo
}

// acknowledge tells a destroy that cut this replica's operation short that
// nothing more will be done to the engine from here.
func (o *operation) acknowledge(ctx context.Context, row *registry.Engine) {
	row.Op.Supersedes = ""
	if err := o.s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
		o.log.Warn("cannot acknowledge that the engine is being destroyed", "error", err)
	}
}
