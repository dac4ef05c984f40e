package contract

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/septemberai/orch/internal/ops"
)

//go:generate go run ./document ../../docs/metrics.md

// Document returns the text of docs/metrics.md: tables of every figure that the service
// reports.
func Document() (string, error) {
	doc, err := Load()
	if err != nil {
		return "", err
	}
	text := metricsHead
	for _, table := range []struct{ heading, schema string }{{"", "Metrics"}, {"\n## GET /status\n", "FleetStatus"}, {"\n## Each of warm_pools\n", "WarmPool"}} {
		text += table.heading + "\n| Figure | Type | Unit | Meaning |\n|---|---|---|---|\n" + figures(doc.Components.Schemas[table.schema].Value, "")
	}
	return text + prometheusText(), nil
}

// prometheusText describes the metrics of the listener for operators.
func prometheusText() string {
	var b strings.Builder
	b.WriteString(prometheusHead)
	for _, m := range ops.NewMetrics().Defined() {
		labels := "–"
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, m.Help)
	}
	return b.String()
}

const prometheusHead = `
## Prometheus
[The listener for operators](operations.md#the-listener-for-operators) serves these in the format of Prometheus, ` + "`GET /metrics` of `ORCH_OPS_ADDR`" + `, without a key:

    scrape_configs:
      - job_name: orch
        static_configs: [{targets: ["127.0.0.1:8001"]}]

Each replica counts what it did itself, so sum counters and histograms over the replicas. What exists once for all replicas (engines, quotas, pools) is reported from the view of each replica, or by the leader alone: take the maximum of those. No label contains a user, an engine, a key or an address, so users do not add series.

Besides these, there are the metrics of the Go runtime and of the process (` + "`go_*`, `process_*`" + `).

| Metric | Type | Labels | Meaning |
|---|---|---|---|
`

const metricsHead = `# Metrics

<!-- Made by "make docs" from docs/openapi.yaml and internal/ops: change it there. -->

This page is the reference of the figures that orch reports. [Operations](operations.md#what-to-watch) says which of them to watch, and which values are good.

These calls return JSON. A figure is a number in the response, without labels: the key of the call decides what it counts. The metrics for Prometheus are [below](#prometheus).

| Call | With | Counts |
|---|---|---|
| ` + "`GET /metrics`" + ` | ` + "`X-Platform-Key`" + ` | the operations on engines of this product, from the audit log |
| ` + "`GET /status`" + ` | ` + "`X-Platform-Key`" + ` | the engines of this product, now |
| ` + "`GET /status`" + ` | ` + "`X-Admin-Key`" + ` | the engines of all products, now, and what is for the admin alone |

` + "`GET /status`" + ` comes from the memory of the replica that responds. The header ` + "`X-View-Age`" + ` is its age in seconds. ` + "`GET /metrics`" + ` reads the audit database at each call, and is 503 without it.

## GET /metrics
A name that ends in ` + "`_1h`" + ` covers the hour before the call. A total covers the life of the product and does not shrink when old audit rows are deleted.
`

// figures returns table rows for the fields of an object, with the prefix parent: first the
// required fields in their order in the document, then the others by name.
func figures(s *openapi3.Schema, parent string) string {
	var b strings.Builder
	place := func(name string) int {
		if i := slices.Index(s.Required, name); i >= 0 {
			return i
		}
		return len(s.Required)
	}
	inOrder := func(a, b string) int { return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b)) }
	for _, field := range slices.SortedFunc(maps.Keys(s.Properties), inOrder) {
		f := s.Properties[field].Value
		name, kind := parent+field, f.Type.Slice()[0]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, kind, unitOf(field, kind), f.Description)
		if len(f.Properties) > 0 {
			b.WriteString(figures(f, name+"."))
		}
	}
	return b.String()
}

// unitOf returns the unit given by the suffix of a figure's name; for other numbers, a
// count.
func unitOf(name, kind string) string {
	for suffix, unit := range map[string]string{"_ms": "ms", "_mhz": "MHz", "_mb": "MiB"} {
		if strings.HasSuffix(name, suffix) {
			return unit
		}
	}
	if kind == "integer" || kind == "number" {
		return "count"
	}
	return "–"
}
