package ops

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
)

const (
	// mostProducts is how many products have series of their own, the largest ones; the
	// others are counted together as otherProducts.
	mostProducts  = 50
	otherProducts = "other"
	// defaultPool is the node pool of engines whose product's policy names none.
	defaultPool = "default"
	// scrapeWithin limits the reads of the registry in one scrape.
	scrapeWithin = 2 * time.Second
)

// Sources are asked at each scrape.
type Sources struct {
	Scheduler interface {
		Figures() scheduler.Figures
		SharedFigures(ctx context.Context) (scheduler.SharedFigures, error)
	}
	Server interface {
		InFlight() int
		Connections() (open, most int)
	}
	Stores []interface {
		Name() string
		Away() bool
	}
	Token interface {
		TokenExpires() (time.Time, bool)
	}
	// Tokens are those for Nomad and Consul.
	Tokens interface {
		Ends() map[string]time.Time
	}
	Certificates interface {
		Ends() map[string]time.Time
	}
}

// gauges are the metrics that are collected at each scrape.
type gauges struct {
	engines, unhealthy, warm, volumes                              *prometheus.Desc
	used, quota, quarantined, keysMissing, unreachable             *prometheus.Desc
	point, overdue, without, recovery, failedDrills, drillsOverdue *prometheus.Desc
	leader, recovering, viewAge                                    *prometheus.Desc
	inFlight, connections, mostConnections                         *prometheus.Desc
	responds, expires, tokens, certificates                        *prometheus.Desc
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.Desc {
	m.define(name, "gauge", help, labels)
	return prometheus.NewDesc(name, help, labels, nil)
}

func (m *Metrics) gauges() gauges {
	const ofLeader = " Only the leader reports it."
	return gauges{
		engines:     m.gauge("orch_engines", "Engines by their product's slug and their state, in the view of this replica. The 50 products with the most engines have series of their own; all others are counted as other.", "product", "state"),
		unhealthy:   m.gauge("orch_engines_unhealthy", "Failed engines and running engines whose health check fails, in the view of this replica."),
		warm:        m.gauge("orch_warm_engines", "Engines without a user, by node pool and state, in the view of this replica.", "node_pool", "state"),
		volumes:     m.gauge("orch_pooled_volumes", "Ready host volumes that wait for an engine, by node pool."+ofLeader, "node_pool"),
		used:        m.gauge("orch_quota_used", "Engines by their product's quota count, for the 50 products with the most engines; all others are counted as other."+ofLeader, "product"),
		quota:       m.gauge("orch_quota", "max_engines of the policies of these products; absent without a limit."+ofLeader, "product"),
		quarantined: m.gauge("orch_quarantined_engines", "Engines that wait for the admin's decision."+ofLeader),
		keysMissing: m.gauge("orch_keys_missing", "Engines whose key Vault has lost."+ofLeader),
		unreachable: m.gauge("orch_unreachable_volumes", "Destroyed engines whose volume waits for the return of its node."+ofLeader),

		point:         m.gauge("orch_recovery_point_seconds", "Age of the oldest newest snapshot of a product's engines, among those whose policy asks for snapshots and which have changed since; absent if there is none. Products as in orch_quota_used; of the others, the greatest."+ofLeader, "product"),
		overdue:       m.gauge("orch_snapshots_overdue", "Of these engines, those without a snapshot of the last two intervals and 15 minutes."+ofLeader, "product"),
		without:       m.gauge("orch_engines_without_snapshot", "Of these engines, those that have no snapshot at all."+ofLeader, "product"),
		recovery:      m.gauge("orch_recovery_time_seconds", "Duration of the last restore or restore drill of a product's engines; absent if there was none."+ofLeader, "product"),
		failedDrills:  m.gauge("orch_failed_drills", "Engines whose last restore drill failed: their snapshot could not be restored."+ofLeader, "product"),
		drillsOverdue: m.gauge("orch_drills_overdue", "1 if a product has snapshots but no successful restore drill for three times the interval of drills, otherwise 0; of the others, how many."+ofLeader, "product"),

		leader:     m.gauge("orch_leader", "1 if this replica leads, otherwise 0."),
		recovering: m.gauge("orch_registry_recovering", "1 if the registry went back in time and is being rebuilt, or its state is not known yet; otherwise 0."),
		viewAge:    m.gauge("orch_view_age_seconds", "Time since this replica's view of the engines was known to be complete; absent until it was filled. From 30 s on the replica is not ready."),

		inFlight:        m.gauge("orch_http_requests_in_flight", "Requests in progress, on both listeners."),
		connections:     m.gauge("orch_http_connections", "Open connections of ORCH_ADDR."),
		mostConnections: m.gauge("orch_http_connections_limit", "The most connections that ORCH_ADDR accepts, by the limit of open files."),

		responds:     m.gauge("orch_store_responds", "0 if the store is known not to respond, otherwise 1.", "store"),
		expires:      m.gauge("orch_vault_token_expires_seconds", "Time until the service's Vault token expires unless it is renewed again; absent if that is not known or never."),
		tokens:       m.gauge("orch_token_expires_seconds", "Time until the service's token for Nomad or Consul expires; absent if that is not known or never, as of most tokens.", "store"),
		certificates: m.gauge("orch_certificate_expires_seconds", "Time until a certificate of the service expires: that of its listener (server), and those that it shows to Nomad, Consul and Vault. Absent without such a certificate.", "of"),
	}
}

// Collect lets each scrape ask the sources. Call it once.
func (m *Metrics) Collect(s Sources) { m.registry.MustRegister(&collector{m.now, s}) }

type collector struct {
	gauges
	from Sources
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.engines, c.unhealthy, c.warm, c.volumes, c.used, c.quota, c.quarantined, c.keysMissing, c.unreachable, c.point, c.overdue, c.without, c.recovery, c.failedDrills, c.drillsOverdue, c.leader, c.recovering, c.viewAge,
		c.inFlight, c.connections, c.mostConnections, c.responds, c.expires, c.tokens, c.certificates,
	} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.inFlight, float64(c.from.Server.InFlight()))
	open, most := c.from.Server.Connections()
	gauge(c.connections, float64(open))
	gauge(c.mostConnections, float64(most))
	for _, s := range c.from.Stores {
		gauge(c.responds, one(!s.Away()), s.Name())
	}
	if at, known := c.from.Token.TokenExpires(); known {
		gauge(c.expires, time.Until(at).Seconds())
	}
	for store, end := range c.from.Tokens.Ends() {
		gauge(c.tokens, time.Until(end).Seconds(), store)
	}
	for of, end := range c.from.Certificates.Ends() {
		gauge(c.certificates, time.Until(end).Seconds(), of)
	}
	f := c.from.Scheduler.Figures()
	gauge(c.leader, one(f.Leader))
	gauge(c.recovering, one(f.Recovering))
	for pool, n := range f.Volumes {
		gauge(c.volumes, float64(n), cmp.Or(pool, defaultPool))
	}
	if f.Viewed {
		gauge(c.viewAge, f.ViewAge.Seconds())
		gauge(c.unhealthy, float64(f.Unhealthy))
		for _, p := range largest(f.Products) {
			for _, state := range engine.States {
				gauge(c.engines, float64(p.ByState[state]), p.Slug, string(state))
			}
		}
		for pool, states := range f.WarmEngines {
			for state, n := range states {
				gauge(c.warm, float64(n), cmp.Or(pool, defaultPool), string(state))
			}
		}
	}
	if f.Leader {
		c.shared(gauge)
	}
}

// shared collects what the registry must be read for.
func (c *collector) shared(gauge func(*prometheus.Desc, float64, ...string)) {
	ctx, cancel := context.WithTimeout(link.FailFast(context.Background()), scrapeWithin)
	defer cancel()
	f, err := c.from.Scheduler.SharedFigures(ctx)
	if err != nil {
		return // the store's own metrics show it
	}
	gauge(c.quarantined, float64(f.Quarantined))
	gauge(c.keysMissing, float64(f.KeysMissing))
	gauge(c.unreachable, float64(f.UnreachableVolumes))
	counts, limits := make([]registry.ProductCounts, 0, len(f.Tenants)), map[string]int{}
	for _, t := range f.Tenants {
		counts = append(counts, registry.ProductCounts{ProductID: t.ProductID, Slug: t.Slug, Total: t.Engines})
		if most := t.Policy.MaxEngines; most != nil {
			limits[t.Slug] = *most
		}
	}
	for _, p := range largest(counts) {
		gauge(c.used, float64(p.Total), p.Slug)
		if most, limited := limits[p.Slug]; limited && p.Slug != otherProducts {
			gauge(c.quota, float64(most), p.Slug)
		}
	}
	c.protection(gauge, largest(counts), f)
}

// protection collects how well brains are protected by snapshots, for the products that are
// shown.
func (c *collector) protection(gauge func(*prometheus.Desc, float64, ...string), shown []registry.ProductCounts, f scheduler.SharedFigures) {
	named := map[string]bool{}
	for _, p := range shown {
		named[p.Slug] = true
	}
	bySlug := map[string]scheduler.Protection{}
	for _, t := range f.Tenants {
		slug := t.Slug
		if !named[slug] {
			slug = otherProducts
		}
		sum := bySlug[slug]
		sum.Add(f.Protections[t.ProductID])
		bySlug[slug] = sum
	}
	for slug, p := range bySlug {
		if p.RecoveryPoint > 0 {
			gauge(c.point, p.RecoveryPoint.Seconds(), slug)
		}
		if p.RecoveryTime > 0 {
			gauge(c.recovery, p.RecoveryTime.Seconds(), slug)
		}
		gauge(c.overdue, float64(p.Overdue), slug)
		gauge(c.without, float64(p.Without), slug)
		gauge(c.failedDrills, float64(p.FailedDrills), slug)
		gauge(c.drillsOverdue, float64(p.DrillsOverdue), slug)
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// largest returns the products with the most engines, and the sum of all others. A product
// with the slug of the others is counted among them. Products of one slug, which only a
// damaged registry has, are counted together.
func largest(products []registry.ProductCounts) []registry.ProductCounts {
	bySlug := map[string]*registry.ProductCounts{}
	add := func(slug string, p registry.ProductCounts) {
		sum := bySlug[slug]
		if sum == nil {
			sum = &registry.ProductCounts{Slug: slug, ByState: map[engine.State]int{}}
			bySlug[slug] = sum
		}
		sum.Total += p.Total
		for state, n := range p.ByState {
			sum.ByState[state] += n
		}
	}
	for _, p := range products {
		add(p.Slug, p)
	}
	bySize := slices.SortedFunc(maps.Values(bySlug), func(a, b *registry.ProductCounts) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Slug, b.Slug))
	})
	shown := make([]registry.ProductCounts, 0, mostProducts+1)
	for _, p := range bySize {
		if p.Slug != otherProducts && len(shown) < mostProducts {
			shown = append(shown, *p)
		} else if p.Slug != otherProducts {
			add(otherProducts, *p)
		}
	}
	if rest := bySlug[otherProducts]; rest != nil {
		shown = append(shown, *rest)
	}
	return shown
}
