package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/reconcile"
)

// source is a service that leads and has products.
type source struct {
	products int
	fails    error
}

func (s source) slug(i int) string { return fmt.Sprintf("product-%03d", i) }

func (s source) Figures() scheduler.Figures {
	f := scheduler.Figures{
		Leader: true, Viewed: true, ViewAge: 3 * time.Second, Unhealthy: 4, Volumes: map[string]int{"": 5, "gpu": 6},
		WarmEngines: map[string]map[engine.State]int{"": {engine.Running: 7}},
	}
	for i := range s.products {
		f.Products = append(f.Products, registry.ProductCounts{ProductID: "id", Slug: s.slug(i), Total: i + 1, ByState: map[engine.State]int{engine.Running: i + 1}})
	}
	return f
}

func (s source) SharedFigures(context.Context) (scheduler.SharedFigures, error) {
	f := scheduler.SharedFigures{Quarantined: 1, KeysMissing: 2, UnreachableVolumes: 3, Protections: map[string]scheduler.Protection{"id": {RecoveryPoint: time.Hour, RecoveryTime: time.Second}}}
	for i := range s.products {
		most := 1000 + i
		p := &engine.Product{ProductID: "id", Slug: s.slug(i), Policy: engine.Policy{MaxEngines: &most}}
		f.Tenants = append(f.Tenants, registry.Tenant{Product: p, Engines: i + 1})
	}
	return f, s.fails
}

func (source) InFlight() int                   { return 8 }
func (source) Connections() (int, int)         { return 9, 10 }
func (source) Name() string                    { return "consul" }
func (source) Away() bool                      { return true }
func (source) TokenExpires() (time.Time, bool) { return time.Now().Add(time.Hour), true }
func (source) Ends() map[string]time.Time {
	return map[string]time.Time{"server": time.Now().Add(2 * time.Hour)}
}

func observed(s source) *Metrics {
	m := NewMetrics()
	m.Built("v1.2.3", "abc")
	stores := []interface {
		Name() string
		Away() bool
	}{s}
	m.Collect(Sources{Scheduler: s, Server: s, Stores: stores, Token: s, Tokens: s, Certificates: s})
	m.Request("POST", "/engines/{user_id}/admit", 200, time.Millisecond)
	m.Operation(operation.Outcome{Kind: "warm claim", Took: time.Second, Phases: []operation.Phase{{Name: "boot", Took: 700 * time.Millisecond}, {Name: "claim", Took: 100 * time.Millisecond}}})
	m.Operation(operation.Outcome{Kind: "start", Action: audit.ActionAutoRestartStart, Code: engine.BootTimeout})
	m.Pass(time.Second)
	m.Action(reconcile.ActMark, errors.New("no"))
	m.Call("consul", link.CallRead, link.ResultOK, time.Millisecond)
	m.Audit(time.Millisecond, nil)
	return m
}

// series returns the values of a metric by its labels, as in {a="b"}; of a histogram the sum.
func series(t *testing.T, m *Metrics, name string) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, metric := range f.GetMetric() {
			values[labels(metric)] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + metric.GetHistogram().GetSampleSum()
		}
	}
	return values
}

func labels(m *dto.Metric) string {
	var all []string
	for _, l := range m.GetLabel() {
		all = append(all, l.GetName()+"="+l.GetValue())
	}
	return strings.Join(all, ",")
}

// TestDefined: a scrape has the defined metrics, each with its type, labels and help, and no
// others except those of the runtime.
func TestDefined(t *testing.T) {
	m := observed(source{products: 2})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []Metric
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "go_") || strings.HasPrefix(f.GetName(), "process_") {
			continue
		}
		found := Metric{Name: f.GetName(), Type: strings.ToLower(f.GetType().String()), Help: f.GetHelp()}
		for _, l := range f.GetMetric()[0].GetLabel() {
			found.Labels = append(found.Labels, l.GetName())
		}
		got = append(got, found)
	}
	want := slices.Clone(m.Defined())
	for i := range want {
		want[i].Labels = slices.Sorted(slices.Values(want[i].Labels))
	}
	slices.SortFunc(want, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defined (-), scraped (+):\n%s", diff)
	}
}

// TestValues: what is observed and collected has its value under the documented labels.
func TestValues(t *testing.T) {
	m := observed(source{products: 1})
	for name, want := range map[string]map[string]float64{
		"orch_build_info":                       {"commit=abc,version=v1.2.3": 1},
		"orch_http_requests_total":              {"method=POST,route=/engines/{user_id}/admit,status=200": 1},
		"orch_operations_total":                 {"kind=warm_claim,outcome=ok": 1, "kind=start,outcome=BOOT_TIMEOUT": 1},
		"orch_operation_duration_seconds":       {"kind=warm_claim": 1},
		"orch_operation_own_duration_seconds":   {"kind=warm_claim": 0.3},
		"orch_operation_phase_duration_seconds": {"kind=warm_claim,phase=boot": 0.7, "kind=warm_claim,phase=claim": 0.1},
		"orch_restarts_total":                   {"outcome=failed": 1},
		"orch_store_calls_total":                {"kind=read,result=ok,store=consul": 1, "kind=sql,result=ok,store=audit": 1},
		"orch_reconcile_actions_total":          {"action=mark_orphan,outcome=failed": 1},
		"orch_reconcile_pass_duration_seconds":  {"": 1},
		"orch_pooled_volumes":                   {"node_pool=default": 5, "node_pool=gpu": 6},
		"orch_warm_engines":                     {"node_pool=default,state=running": 7},
		"orch_quota_used":                       {"product=product-000": 1},
		"orch_quota":                            {"product=product-000": 1000},
		"orch_unreachable_volumes":              {"": 3},
		"orch_view_age_seconds":                 {"": 3},
		"orch_store_responds":                   {"store=consul": 0},
		"orch_http_connections":                 {"": 9},
		"orch_http_requests_in_flight":          {"": 8},
	} {
		near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
		if diff := cmp.Diff(want, series(t, m, name), near); diff != "" {
			t.Errorf("%s: want (-), got (+):\n%s", name, diff)
		}
	}
	if left := series(t, m, "orch_token_expires_seconds")["store=server"]; left < 7100 || left > 7200 {
		t.Errorf("the token of a store expires in %g s, want two hours", left)
	}
	if left := series(t, m, "orch_vault_token_expires_seconds")[""]; left < 3500 || left > 3600 {
		t.Errorf("the token expires in %g s, want an hour", left)
	}
}

// TestCertificateEnds: a certificate of the service has the time until it expires.
func TestCertificateEnds(t *testing.T) {
	if left := series(t, observed(source{}), "orch_certificate_expires_seconds")["of=server"]; left < 7100 || left > 7200 {
		t.Errorf("it expires in %g s, want two hours", left)
	}
}

// TestProductsAreBounded: however many products there are, only the largest have series.
func TestProductsAreBounded(t *testing.T) {
	const products = 3 * mostProducts
	m := observed(source{products: products})
	for _, name := range []string{"orch_engines", "orch_quota_used"} {
		sum, slugs := 0.0, map[string]bool{}
		for of, v := range series(t, m, name) {
			sum += v
			product, _, _ := strings.Cut(strings.TrimPrefix(of, "product="), ",")
			slugs[product] = true
		}
		if len(slugs) != mostProducts+1 || !slugs[otherProducts] || !slugs[source{}.slug(products-1)] || slugs[source{}.slug(0)] {
			t.Errorf("%s has series of %d products: %v", name, len(slugs), slugs)
		}
		if want := float64(products * (products + 1) / 2); sum != want {
			t.Errorf("%s: %g engines in total, want %g", name, sum, want)
		}
	}
	if got := len(series(t, m, "orch_quota")); got != mostProducts {
		t.Errorf("%d quotas, want %d", got, mostProducts)
	}
}

// TestOtherProducts: products with the slug of the sum, or with one slug, do not break a
// scrape.
func TestOtherProducts(t *testing.T) {
	got := largest([]registry.ProductCounts{{Slug: otherProducts, Total: 7}, {Slug: "a", Total: 1}, {Slug: "a", Total: 2}})
	if len(got) != 2 || got[0].Slug != "a" || got[0].Total != 3 || got[1].Slug != otherProducts || got[1].Total != 7 {
		t.Errorf("got %+v", got)
	}
}

// TestRegistryAway: a registry that cannot be read leaves the other metrics.
func TestRegistryAway(t *testing.T) {
	m := observed(source{products: 1, fails: registry.ErrUnavailable})
	if got := series(t, m, "orch_quota_used"); len(got) > 0 {
		t.Errorf("quotas: %v", got)
	}
	if got := series(t, m, "orch_leader")[""]; got != 1 {
		t.Errorf("leader: %g", got)
	}
}
