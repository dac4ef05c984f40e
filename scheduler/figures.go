package scheduler

import (
	"cmp"
	"context"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Figures are what this replica knows about the service now, for metrics.
type Figures struct {
	Leader     bool
	Recovering bool // the registry went back in time, or its state is not known yet
	// ViewAge is how long ago the view was known to be complete. Viewed: it was filled; only
	// then are there Products, Unhealthy and WarmEngines.
	ViewAge time.Duration
	Viewed  bool
	// Products are the products with engines.
	Products []registry.ProductCounts
	// Unhealthy counts failed engines, and running engines whose check fails.
	Unhealthy int
	// WarmEngines counts the warm engines by node pool ("": the default one) and state.
	WarmEngines map[string]map[engine.State]int
	// Volumes counts the ready volumes by node pool. nil: this replica does not lead.
	Volumes map[string]int
}

// Figures returns what is in memory, without calling a store.
func (s *Scheduler) Figures() Figures {
	f := Figures{Leader: s.replica.Leader(), Recovering: s.RegistryState() != registry.RegistryOK}
	if f.Leader {
		f.Volumes = s.pool.ByNodePool()
	}
	select {
	case <-s.mirror.Synced():
	default:
		return f
	}
	f.Viewed, f.ViewAge, f.Products = true, s.mirror.Age(), s.mirror.ByProduct()
	f.Unhealthy = s.health.Failing(s.mirror.In("", engine.Running))
	for _, p := range f.Products {
		f.Unhealthy += p.ByState[engine.Failed]
	}
	f.WarmEngines = map[string]map[engine.State]int{}
	for _, row := range s.mirror.Of(engine.WarmProduct) {
		pool := cmp.Or(row.NodePool, "default")
		if f.WarmEngines[pool] == nil {
			f.WarmEngines[pool] = map[engine.State]int{}
		}
		f.WarmEngines[pool][row.State]++
	}
	return f
}

// SharedFigures are what only the registry knows.
type SharedFigures struct {
	Quarantined, KeysMissing, UnreachableVolumes int
	// Tenants are the readable products, with the number of their engines by their quota.
	Tenants []registry.Tenant
	// Protections are those of the products, by product_id.
	Protections map[string]Protection
}

// SharedFigures reads the registry. BACKEND_UNAVAILABLE.
func (s *Scheduler) SharedFigures(ctx context.Context) (SharedFigures, error) {
	recorded, err := s.Registry(ctx)
	if err != nil {
		return SharedFigures{}, err
	}
	unreachable, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return SharedFigures{}, err
	}
	tenants, _, err := s.store.Tenants(ctx)
	if err != nil {
		return SharedFigures{}, err
	}
	products := make([]*engine.Product, 0, len(tenants))
	for _, t := range tenants {
		products = append(products, t.Product)
	}
	return SharedFigures{
		Protections: s.protections(products),
		Quarantined: recorded.Quarantined, KeysMissing: recorded.KeysMissing, UnreachableVolumes: len(unreachable), Tenants: tenants,
	}, nil
}
