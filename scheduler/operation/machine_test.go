package operation

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// memory is a Store with one row, and the view of it.
type memory struct {
	mu       sync.Mutex
	row      *engine.Row
	replicas map[string]bool
}

func (m *memory) Engine(context.Context, string, string) (*engine.Row, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.row.Clone(), nil
}

func (m *memory) Update(_ context.Context, row *engine.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if row.Index != m.row.Index {
		return registry.ErrConflict
	}
	row.Index++
	m.row = row.Clone()
	return nil
}

func (m *memory) Verify(_ context.Context, row *engine.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if row.Index != m.row.Index {
		return registry.ErrConflict
	}
	return nil
}

func (m *memory) Replicas(context.Context) (map[string]bool, error) { return m.replicas, nil }

func (m *memory) All() []*engine.Row {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []*engine.Row{m.row.Clone()}
}

func (m *memory) Synced() <-chan struct{} {
	synced := make(chan struct{})
	close(synced)
	return synced
}

// owner records which steps ran, and the results for the audit log.
type owner struct {
	mu       sync.Mutex
	steps    []string
	recorded []error
}

func (*owner) MayTakeOver() bool                                { return true }
func (*owner) Whole(context.Context) bool                       { return true }
func (*owner) Work(o *Operation) Work                           { return o }
func (*owner) Abandon(context.Context, int64, time.Time, error) {}
func (*owner) Name(o *Operation) string                         { return string(o.Began.Kind) }
func (*owner) ReasonOf(error) string                            { return "" }
func (w *owner) Record(_ context.Context, _ Work, err error)    { w.note("", err) }
func (w *owner) ran() (steps []string, recorded []error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.steps, w.recorded
}

func (*owner) AsError(err error) *engine.Error {
	var known *engine.Error
	if err != nil && !errors.As(err, &known) {
		known = &engine.Error{Code: engine.Internal, Err: err}
	}
	return known
}

func (w *owner) note(step string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if step == "" {
		w.recorded = append(w.recorded, err)
		return
	}
	w.steps = append(w.steps, step)
}

// machine returns a Machine whose starts have two steps; second is the second one.
func machine(t *testing.T, op *engine.Operation, second func(context.Context, *Operation) error) (*Machine, *memory, *owner) {
	t.Helper()
	store := &memory{row: &engine.Row{
		ProductID: "p", UserID: "u", EngineID: "e", State: engine.Provisioning, Desired: engine.Running, Op: op,
	}}
	w := &owner{}
	step := func(name string, do func(context.Context, *Operation) error) Step {
		return Step{Name: name, Do: func(ctx context.Context, work Work) error {
			w.note(name, nil)
			return do(ctx, work.(*Operation))
		}}
	}
	nothing := func(context.Context, *Operation) error { return nil }
	plans := &Plans{
		Forward: map[engine.OpKind][]Step{engine.OpStart: {step("first", nothing), step("second", second)}},
		Undo:    map[engine.OpKind][]Step{engine.OpStart: {step("undo", nothing)}},
	}
	m := New(Deps{Log: hclog.NewNullLogger(), Store: store, Rows: store, Owner: w, Replica: "here", Plans: plans, BootTimeout: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	m.Start(ctx)
	t.Cleanup(func() {
		cancel()
		m.Wait()
	})
	return m, store, w
}

func start(owner string) *engine.Operation {
	return &engine.Operation{ID: "op", Kind: engine.OpStart, Step: "first", Owner: owner, From: engine.Stopped, Deadline: time.Now().Add(time.Minute)}
}

func TestOperationRunsItsSteps(t *testing.T) {
	m, store, w := machine(t, start("here"), func(_ context.Context, o *Operation) error {
		o.Row.URL = "http://engine"
		return nil
	})
	row, err := m.Launch(store.row.Clone()).Wait(t.Context())
	if err != nil || row.State != engine.Running || row.URL != "http://engine" || row.Op != nil {
		t.Fatalf("got %+v, %v", row, err)
	}
	if steps, recorded := w.ran(); len(steps) != 2 || steps[1] != "second" || len(recorded) != 1 || recorded[0] != nil {
		t.Errorf("ran %v, recorded %v", steps, recorded)
	}
}

// A failed operation is undone, and its caller gets the error after that.
func TestOperationIsUndone(t *testing.T) {
	full := engine.Errorf(engine.CapacityExhausted, "full")
	m, store, w := machine(t, start("here"), func(context.Context, *Operation) error { return full })
	if _, err := m.Launch(store.row.Clone()).Wait(t.Context()); !errors.Is(err, full) {
		t.Fatalf("got %v", err)
	}
	if row, _ := store.Engine(t.Context(), "p", "u"); row.Op != nil || row.State != engine.Stopped || row.Last.Code != string(engine.CapacityExhausted) {
		t.Errorf("the row is %+v", row)
	}
	if steps, recorded := w.ran(); len(steps) != 3 || steps[2] != "undo" || len(recorded) != 1 || !errors.Is(recorded[0], full) {
		t.Errorf("ran %v, recorded %v", steps, recorded)
	}
}

// After a step that removes what an undo would need, an operation is not undone but repeated.
func TestOperationGoesOnward(t *testing.T) {
	failed := false
	m, store, w := machine(t, start("here"), func(context.Context, *Operation) error {
		if !failed {
			failed = true
			return engine.Errorf(engine.BackendUnavailable, "away")
		}
		return nil
	})
	m.Plans.Forward[engine.OpStart][1].Onward = true
	o := m.Launch(store.row.Clone())
	if _, err := o.Wait(t.Context()); (*owner)(nil).AsError(err).Code != engine.BackendUnavailable {
		t.Errorf("the caller got %v", err)
	}
	<-o.Ended
	if row, _ := store.Engine(t.Context(), "p", "u"); row.Op != nil || row.State != engine.Running {
		t.Errorf("the row is %+v", row)
	}
	if steps, _ := w.ran(); strings.Join(steps, " ") != "first second second" {
		t.Errorf("ran %v", steps)
	}
}

// TestOutcome: each operation is reported once, with its phases or the code of its caller.
func TestOutcome(t *testing.T) {
	ended := func(t *testing.T, second error, before ...any) []Outcome {
		var all []Outcome // the machine calls Observe in the operation's goroutine, which has ended
		m, store, _ := machine(t, start("here"), func(context.Context, *Operation) error { return second })
		m.Observe = func(o Outcome) { all = append(all, o) }
		o := m.Launch(store.row.Clone(), before...)
		<-o.Ended
		return all
	}
	t.Run("OK", func(t *testing.T) {
		all := ended(t, nil, TimingClaim+"_ms", 1000.0)
		if len(all) != 1 || all[0].Kind != "start" || all[0].Code != "" || all[0].Took < time.Second || all[0].Took > 2*time.Minute {
			t.Fatalf("got %+v", all)
		}
		var names []string
		for _, p := range all[0].Phases {
			names = append(names, p.Name)
		}
		if got, want := strings.Join(names, " "), "claim first second rows audit-end"; got != want {
			t.Errorf("phases %q, want %q", got, want)
		}
		if claim := all[0].Phases[0].Took; claim != time.Second {
			t.Errorf("the claim took %s", claim)
		}
	})
	t.Run("ErrFull", func(t *testing.T) {
		all := ended(t, engine.Errorf(engine.CapacityExhausted, "full"))
		if len(all) != 1 || all[0].Code != engine.CapacityExhausted || all[0].Phases != nil {
			t.Errorf("got %+v", all)
		}
	})
}

// After another replica took over its row, an operation changes nothing any more, and leaves
// the audit row to that replica.
func TestOperationTakenFromIt(t *testing.T) {
	reached, may := make(chan struct{}), make(chan struct{})
	m, store, w := machine(t, start("here"), func(ctx context.Context, o *Operation) error {
		close(reached)
		<-may
		return o.Fence(ctx)
	})
	o := m.Launch(store.row.Clone())
	<-reached
	there, _ := store.Engine(t.Context(), "p", "u")
	there.Op.Owner = "there"
	if err := store.Update(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	close(may)
	if _, err := o.Wait(t.Context()); !errors.Is(err, ErrTakenOver) {
		t.Errorf("got %v", err)
	}
	<-o.Ended
	if row, _ := store.Engine(t.Context(), "p", "u"); row.Op == nil || row.Op.Owner != "there" {
		t.Errorf("the row is %+v", row)
	}
	if _, recorded := w.ran(); len(recorded) != 0 {
		t.Errorf("recorded %v", recorded)
	}
}

// An operation of a dead replica is continued at its step. One of a live replica is not taken
// over.
func TestOperationIsTakenOver(t *testing.T) {
	for name, lives := range map[string]bool{"Gone": false, "Lives": true} {
		t.Run(name, func(t *testing.T) {
			op := start("there")
			op.Step = "second"
			m, store, w := machine(t, op, func(context.Context, *Operation) error { return nil })
			store.replicas = map[string]bool{"here": true, "there": lives}
			if err := m.recoverOnce(t.Context(), strays{}); err != nil {
				t.Fatal(err)
			}
			if o := m.Running("p", "u"); o != nil {
				<-o.Ended
			}
			row, _ := store.Engine(t.Context(), "p", "u")
			steps, _ := w.ran()
			if lives && (row.Op == nil || len(steps) > 0) {
				t.Errorf("it was taken over: %+v, ran %v", row, steps)
			}
			if !lives && (row.State != engine.Running || len(steps) != 1) {
				t.Errorf("it was not taken over: %+v, ran %v", row, steps)
			}
		})
	}
}
