// Package operation carries out operations on engines, step by step: it launches them,
// writes the row after each step, undoes or retries what fails, verifies before an act
// that the operation is still this replica's, tells those who wait, and takes over the
// operations of replicas that are gone. What the steps do is its owner's.
package operation

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// Store is where rows are. The errors are those of registry.Store.
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

// Owner is whose operations they are.
type Owner interface {
	// MayTakeOver says whether this replica may look for abandoned operations.
	MayTakeOver() bool
	// Whole says whether the registry did not go back in time, asked anew: else an
	// operation of then might be begun once more.
	Whole(ctx context.Context) bool
	// Work is what the steps of an operation are given.
	Work(o *Operation) Work
	// Record completes an operation's audit row with what its caller hears, and Abandon
	// that of one that never was.
	Record(ctx context.Context, w Work, err error)
	Abandon(ctx context.Context, auditID int64, began time.Time, err error)
	// Name is what the log calls an operation that succeeded.
	Name(o *Operation) string
	// AsError gives an error its place in the contract; ReasonOf is what a failed row
	// says of it, or "".
	AsError(err error) *engine.Error
	ReasonOf(err error) string
}

// Deps are what a Machine needs.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Owner   Owner
	Replica string // its id
	Plans   *Plans
	// BootTimeout is how long an engine may boot, and Restart the backoff of restarts.
	BootTimeout time.Duration
	Restart     engine.Backoff
}

// Machine runs the operations of this replica. Nothing runs before Start.
type Machine struct {
	Deps

	mu        sync.Mutex
	active    map[string]*Operation    // by engineKey
	launching map[string]chan struct{} // by the operation's id
	draining  bool
	base      context.Context // ends when all operations do
	all       sync.WaitGroup
}

// New returns a machine; Start makes it work.
func New(deps Deps) *Machine {
	return &Machine{Deps: deps, active: map[string]*Operation{}, launching: map[string]chan struct{}{}}
}

// Start lets operations run until base ends.
func (m *Machine) Start(base context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.base = base
}

// Wait returns when all operations and what else runs in the background have ended, after
// base did. No new ones are accepted.
func (m *Machine) Wait() {
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	m.all.Wait()
}

// Drain refuses new operations and waits until those under way have answered
// or ctx ends.
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

// NewOperation is the operation that a row is to carry.
func (m *Machine) NewOperation(ctx context.Context, kind engine.OpKind, action string, from engine.State) *engine.Operation {
	return &engine.Operation{
		ID: strings.ToLower(rand.Text()), Kind: kind, Action: action, Step: m.Plans.First(kind), Owner: m.Replica,
		BeganAt: time.Now().UTC(), Deadline: time.Now().UTC().Add(m.Limit(kind)), From: from, RequestID: RequestID(ctx),
	}
}

// Limit is how long an operation may take before its caller is told that it is
// not confirmed. A boot's own deadline begins when its job is registered.
func (m *Machine) Limit(kind engine.OpKind) time.Duration {
	switch kind {
	case engine.OpRotateKey:
		return KillGrace + m.BootTimeout
	case engine.OpStop, engine.OpSleep, engine.OpDestroy:
		return KillGrace + KillMargin
	case engine.OpRecover:
		return m.BootTimeout
	}
	return VolumeTimeout + KillGrace + KillMargin
}

// Longest bounds how long an operation's caller can wait for its
// answer: the server's write timeout follows from it.
func (m *Machine) Longest() time.Duration {
	return max(m.Limit(engine.OpProvision)+m.BootTimeout, m.Limit(engine.OpRotateKey)) + KillGrace
}

func engineKey(productID, userID string) string { return productID + "/" + userID }

// Launch runs the operation that row carries and that this replica owns. It
// returns nil when the machine is stopping: another replica will run it.
func (m *Machine) Launch(row *engine.Row, before ...any) *Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base == nil || m.base.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(WithRequestID(m.base, row.Op.RequestID))
	o := &Operation{
		m: m, Row: row, ID: row.Op.ID, Began: *row.Op, productID: row.ProductID, userID: row.UserID,
		timings: before, cancel: cancel, Answered: make(chan struct{}), Ended: make(chan struct{}),
		Log: m.Log.With("op", string(row.Op.Kind), "engine_id", row.EngineID, "product_id", row.ProductID, "request_id", row.Op.RequestID),
	}
	o.work = m.Owner.Work(o)
	key := engineKey(row.ProductID, row.UserID)
	if running := m.active[key]; running != nil && running.ID == o.ID {
		cancel(nil)
		return running // found by recoverOnce before whoever wrote it had its answer
	}
	m.active[key] = o
	m.all.Go(func() {
		defer close(o.Ended)
		defer cancel(nil)
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

// Background runs something that Wait waits for, and says whether it does: not when the
// machine is stopping. Wait is called only after base has ended, so nothing is added to
// what it waits for.
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

// Open says whether new operations are accepted.
func (m *Machine) Open() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base == nil || m.draining {
		return &engine.Error{Code: engine.BackendUnavailable, Message: "this replica is starting or stopping; try again", RetryAfter: engine.RetryBackend}
	}
	return nil
}
