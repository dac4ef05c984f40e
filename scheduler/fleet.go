package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/health"
)

// staleView is the age of the in-memory view from which on lists are refused and the
// replica is not ready: it could not follow the registry in three attempts.
const staleView = 30 * time.Second

// Fleet reads the in-memory view of rows, which contains every change of this replica at
// once, and those of the others a moment later.
type Fleet struct {
	s         *Scheduler
	productID string // "": all products
	policy    engine.Policy
	// Age is how long ago the view was known to be complete.
	Age time.Duration
}

// Fleet returns the source of a product's lists and counts. BACKEND_UNAVAILABLE: the view
// is not filled yet, or too old.
func (s *Scheduler) Fleet(caller *Caller) (*Fleet, error) {
	return s.fleet(caller.Product.ProductID, caller.Product.Policy)
}

// Whole returns the source of the counts of all products together; its errors are those of
// Fleet.
func (s *Scheduler) Whole() (*Fleet, error) { return s.fleet("", engine.Policy{}) }

func (s *Scheduler) fleet(productID string, policy engine.Policy) (*Fleet, error) {
	age, err := s.viewAge()
	if err != nil {
		return nil, err
	}
	return &Fleet{s: s, productID: productID, policy: policy, Age: age}, nil
}

// viewAge returns how long ago the view was known to be complete. BACKEND_UNAVAILABLE: it
// is not filled yet, or too old.
func (s *Scheduler) viewAge() (time.Duration, error) {
	select {
	case <-s.mirror.Synced():
	default:
		return 0, lagging("this replica has not read the engines yet", errors.New("the view is not filled"))
	}
	age := s.mirror.Age()
	if age > staleView {
		said := fmt.Sprintf("the view of the engines is %s old", age.Round(time.Second))
		return 0, lagging("this replica lags: "+said, errors.New(said))
	}
	return age, nil
}

func lagging(message string, why error) *engine.Error {
	return &engine.Error{Code: engine.BackendUnavailable, Message: message, Err: fmt.Errorf("%w: %w", registry.ErrUnavailable, why), RetryAfter: engine.RetryBackend}
}

// Page returns one page of the product's engines, oldest first. INVALID_REQUEST: the cursor
// is not from this list.
func (f *Fleet) Page(q registry.PageQuery) (rows []*engine.Row, total int, next string, err error) {
	q.ProductID = f.productID
	rows, total, next, err = f.s.mirror.Page(q)
	return rows, total, next, cursorError(err)
}

// PageOfAll returns one page of the engines of all products, oldest first, without warm
// engines. INVALID_REQUEST: the cursor is not from this list.
func (f *Fleet) PageOfAll(q registry.FleetQuery) (rows []*engine.Row, total int, next string, err error) {
	rows, total, next, err = f.s.mirror.FleetPage(q)
	return rows, total, next, cursorError(err)
}

func cursorError(err error) error {
	if errors.Is(err, registry.ErrCursor) {
		return engine.Errorf(engine.InvalidRequest, "cursor is not a next_cursor of this list")
	}
	return err
}

// EngineByID reads the row of an engine_id, of whatever product. ENGINE_NOT_FOUND: no user's
// engine has it. RECORD_UNREADABLE.
func (s *Scheduler) EngineByID(ctx context.Context, engineID string) (*engine.Row, error) {
	if !engine.IsID(engineID) {
		return nil, errNoEngineByID
	}
	row, err := s.store.EngineByID(ctx, engineID)
	if seen := s.mirror.ByID(engineID); errors.Is(err, registry.ErrNotFound) && seen != nil { // its index is missing
		row, err = s.store.Engine(ctx, seen.ProductID, seen.UserID)
	}
	switch {
	case errors.Is(err, registry.ErrNotFound), err == nil && row.EngineID != engineID:
		return nil, errNoEngineByID
	case err == nil && row.ProductID == engine.WarmProduct:
		return nil, engine.Errorf(engine.EngineNotFound, "this is a warm engine: it has no user yet")
	}
	return row, s.askToMend(err)
}

var errNoEngineByID = engine.Errorf(engine.EngineNotFound, "no engine has this engine_id")

// Health is the health of a product's fleet.
type Health string

// The values of Health: no engine failed; some, or a restore drill; more than a fifth.
const (
	HealthOK       Health = "ok"
	HealthDegraded Health = "degraded"
	HealthCritical Health = "critical"
)

// Status counts a product's fleet.
type Status struct {
	Total   int
	ByState map[engine.State]int // all six states
	Health  Health
	// Unhealthy counts failed engines, and running engines whose check fails now.
	Unhealthy int
}

// Leftovers counts what the service has besides users' engines.
type Leftovers struct {
	// UnreachableVolumes counts destroyed engines whose volume could not be deleted yet.
	UnreachableVolumes int
	// PooledVolumes counts the ready host volumes that wait for an engine, on all nodes.
	PooledVolumes int
	// WarmEngines counts engines without a user, as far as this replica knows.
	WarmEngines int
	// WarmKinds is their state by kind; nil: not known yet.
	WarmKinds []WarmKind
	// Protection is that of all products.
	Protection Protection
	Unreadable
}

// Unreadable counts the records of the registry that are damaged or that a newer version of
// the service wrote; engines, as far as this replica knows.
type Unreadable struct{ Engines, Products, Other int }

// Leftovers counts them in the registry. BACKEND_UNAVAILABLE.
func (s *Scheduler) Leftovers(ctx context.Context) (Leftovers, error) {
	unreachable, damagedVolumes, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return Leftovers{}, err
	}
	pool, damagedEntries, err := s.store.PooledVolumes(ctx)
	if err != nil {
		return Leftovers{}, err
	}
	products, damagedProducts, err := s.store.Products(ctx)
	if err != nil {
		return Leftovers{}, err
	}
	kinds, err := s.WarmKinds(ctx)
	if err != nil {
		return Leftovers{}, err
	}
	left := Leftovers{
		UnreachableVolumes: len(unreachable), WarmEngines: s.WarmEngines(), WarmKinds: kinds,
		Unreadable: Unreadable{Engines: s.mirror.Unreadable(""), Products: len(damagedProducts), Other: len(damagedVolumes) + len(damagedEntries)},
	}
	for _, p := range s.protections(products) {
		left.Protection.Add(p)
	}
	for _, v := range pool {
		if v.Ready() {
			left.PooledVolumes++
		}
	}
	return left, nil
}

// Status counts the product's engines.
func (f *Fleet) Status() Status {
	st := Status{ByState: f.s.mirror.Counts(f.productID)}
	for _, n := range st.ByState {
		st.Total += n
	}
	failed := st.ByState[engine.Failed]
	st.Health = healthOf(failed, st.Total)
	if st.Health == HealthOK && slices.ContainsFunc(f.s.mirror.Of(f.productID), func(row *engine.Row) bool { return row.Drill.Failed() }) {
		st.Health = HealthDegraded
	}
	if health.IsStorm(health.FleetHealth(f.s.mirror.All())) {
		st.Health = HealthCritical // for every product, because a storm concerns all engines
	}
	st.Unhealthy = failed + f.s.health.Failing(f.s.mirror.In(f.productID, engine.Running))
	return st
}

func healthOf(failed, total int) Health {
	switch {
	case failed == 0:
		return HealthOK
	case 5*failed > total:
		return HealthCritical
	}
	return HealthDegraded
}

// Numbers returns a product's figures of the last hour and since its registration.
func (s *Scheduler) Numbers(ctx context.Context, caller *Caller) (audit.Numbers, error) {
	return s.audit.Numbers(ctx, caller.Product.ProductID)
}

// Audit reads the log, newest first. INVALID_REQUEST: the cursor is not from this list.
func (s *Scheduler) Audit(ctx context.Context, q audit.Query) (audit.Page, error) {
	page, err := s.audit.Entries(ctx, q)
	if errors.Is(err, audit.ErrCursor) {
		err = engine.Errorf(engine.InvalidRequest, "cursor is not a next_cursor of this list")
	}
	return page, err
}
