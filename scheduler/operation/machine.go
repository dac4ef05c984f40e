// Package operation runs operations on engines, step by step: it launches them, writes the
// row after each step, undoes or retries failed ones, verifies before an action that this
// replica still owns the operation, sends the result to waiting callers, and takes over the
// operations of dead replicas. The owner of the machine defines the steps.
package operation

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/traces"
)

// Store stores the rows. Its errors are those of registry.Store.
type Store interface {
	Engine(ctx context.Context, productID, userID string) (*engine.Row, error)
	Update(ctx context.Context, row *engine.Row) error
	Verify(ctx context.Context, row *engine.Row) error
	Replicas(ctx context.Context) (map[string]bool, error)
}

// Rows is this replica's view of all rows.
type Rows interface {
	All() []*engine.Row
	Synced() <-chan struct{}
}

// Owner defines the operations of a Machine.
type Owner interface {
	// MayTakeOver reports whether this replica may search for abandoned operations.
	MayTakeOver() bool
	// Whole reports, from a new read, whether the registry has not gone back in time. If it
	// has, an operation from before might run a second time.
	Whole(ctx context.Context) bool
	// Work returns the shared data of the steps of an operation.
	Work(o *Operation) Work
	// Record completes an operation's audit row with the result for its caller, and Abandon
	// the row of an operation that was never written.
	Record(ctx context.Context, w Work, err error)
	Abandon(ctx context.Context, auditID int64, began time.Time, err error)
	// Name is the name in the log of an operation that succeeded.
	Name(o *Operation) string
	// AsError converts an error to one of the contract. ReasonOf returns the reason that it
	// gives a failed row, or "".
	AsError(err error) *engine.Error
	ReasonOf(err error) string
}

// Deps are the dependencies and settings of a Machine.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Owner   Owner
	Replica string // the id of this replica
	Plans   *Plans
	// BootTimeout is how long an engine may boot; Restart is the backoff of restarts.
	BootTimeout time.Duration
	Restart     engine.Backoff
	// Observe is told how each operation ended that this replica ran; nil: nobody.
	Observe func(Outcome)
}

// Machine runs the operations of this replica. Nothing runs before Start.
type Machine struct {
	Deps

	mu        sync.Mutex
	active    map[string]*Operation    // by engineKey
	launching map[string]chan struct{} // by the operation's id
	draining  bool
	base      context.Context // ends when all operations must end
	all       sync.WaitGroup
}

// New returns a Machine. Start starts it.
func New(deps Deps) *Machine {
	return &Machine{Deps: deps, active: map[string]*Operation{}, launching: map[string]chan struct{}{}}
}

// Start lets operations run until base ends.
func (m *Machine) Start(base context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.base = base
}

// Wait waits, after the end of base, for the end of all operations and other background
// work. No new ones are accepted.
func (m *Machine) Wait() {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	m.all.Wait()
}

// Drain refuses new operations and waits until those in progress have a result, or ctx
// ends.
func (m *Machine) Drain(ctx context.Context) {
	m.mu.Lock()
	m.draining = true
	waiting := make([]*Operation, 0, len(m.active))
	for _, o := range m.active {
		waiting = append(waiting, o)
	}
	m.mu.Unlock()
	for _, o := range waiting {
		select {
		case <-o.Answered:
		case <-ctx.Done():
			return
		}
	}
}

// NewOperation returns an operation for a row.
func (m *Machine) NewOperation(ctx context.Context, kind engine.OpKind, action string, from engine.State) *engine.Operation {
	return &engine.Operation{
		ID: strings.ToLower(rand.Text()), Kind: kind, Action: action, Step: m.Plans.First(kind), Owner: m.Replica,
		BeganAt: time.Now().UTC(), Deadline: time.Now().UTC().Add(m.Limit(kind)), From: from, RequestID: RequestID(ctx), Trace: traces.Parent(ctx),
	}
}

// Limit returns how long an operation may take before its caller gets an error that it is
// not confirmed. The deadline of a boot begins when its job is registered.
func (m *Machine) Limit(kind engine.OpKind) time.Duration {
	switch kind {
	case engine.OpRotateKey:
		return KillGrace + m.BootTimeout
	case engine.OpStop, engine.OpSleep, engine.OpDestroy:
		return KillGrace + KillMargin
	case engine.OpRecover:
		return m.BootTimeout
	case engine.OpSnapshot, engine.OpRestore, engine.OpMove, engine.OpDrill:
		return BrainTimeout // its caller does not wait as long
	}
	return VolumeTimeout + KillGrace + KillMargin
}

// Longest returns the maximum time that a caller can wait for the result of an operation;
// the server's write timeout is derived from it.
func (m *Machine) Longest() time.Duration {
	return max(m.Limit(engine.OpProvision)+m.BootTimeout, m.Limit(engine.OpRotateKey)) + KillGrace
}

func engineKey(productID, userID string) string { return productID + "/" + userID }

// Launch runs the operation in row, which this replica owns. It returns nil if the machine
// is stopping: another replica will run the operation.
func (m *Machine) Launch(row *engine.Row, before ...any) *Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base == nil || m.base.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(traces.Within(WithRequestID(m.base, row.Op.RequestID), row.Op.Trace))
	o := &Operation{
		m: m, Row: row, ID: row.Op.ID, Began: *row.Op, productID: row.ProductID, userID: row.UserID,
		timings: before, before: len(before) / 2, cancel: cancel, Answered: make(chan struct{}), Ended: make(chan struct{}),
		Log: m.Log.With("op", string(row.Op.Kind), "engine_id", row.EngineID, "product_id", row.ProductID, "request_id", row.Op.RequestID),
	}
	o.work = m.Owner.Work(o)
	key := engineKey(row.ProductID, row.UserID)
	if running := m.active[key]; running != nil && running.ID == o.ID {
		cancel(nil)
		return running // recoverOnce found it before the goroutine that wrote it had a response
	}
	m.active[key] = o
	m.all.Go(func() {
		defer close(o.Ended)
		defer cancel(nil)
		ctx, span := traces.Start(ctx, "operation "+string(o.Began.Kind), "orch.operation", o.ID, "orch.engine_id", row.EngineID, "orch.product_id", row.ProductID, "orch.request_id", o.Began.RequestID)
		defer span.End()
		o.span = span
		if err := o.main(ctx); err != nil {
			o.Log.Info("operation superseded", "by", err)
			o.answer(ctx, err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.active[key] == o {
			delete(m.active, key)
		}
	})
	return o
}

// Background runs do in a goroutine that Wait waits for, and reports whether it does: not
// if the machine is stopping. Wait is called only after the end of base, so nothing is
// added to what it waits for.
func (m *Machine) Background(do func(context.Context)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base == nil || m.base.Err() != nil {
		return false
	}
	ctx := m.base
	m.all.Go(func() { do(ctx) })
	return true
}

// Running returns this replica's operation on an engine, or nil.
func (m *Machine) Running(productID, userID string) *Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active[engineKey(productID, userID)]
}

// Open returns nil if new operations are accepted.
func (m *Machine) Open() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base == nil || m.draining {
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting or stopping; retry", RetryAfter: engine.RetryBackend}
	}
	return nil
}
