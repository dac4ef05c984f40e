package remote

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/septemberai/orch/client"
)

func status() *spec {
	return &spec{
		name: "status", needs: needsEither,
		synopsis: "Show how the product's engines, or the service, are",
		about: `With a platform key: the product's engines in numbers, and its figures of the last
hour. With only the admin key: what the service needs, what it holds in its pools,
and all products.`,
		examples: []string{"orch status", "orch status -json | jq .by_status.failed"},
		run: func(ctx context.Context, in *invocation) error {
			if in.client.PlatformKey != "" {
				return fleet(ctx, in)
			}
			return service(ctx, in)
		},
	}
}

// fleet shows a product what it has.
func fleet(ctx context.Context, in *invocation) error {
	st, err := in.client.Status(ctx)
	if err != nil {
		return err
	}
	// The figures come from another store: without them the counts are still worth
	// showing.
	m, merr := in.client.Metrics(ctx)
	t := &table{}
	t.row("Health", st.Health)
	t.row("Engines", st.Total)
	for _, state := range client.States {
		t.row("  "+state, st.ByStatus[state])
	}
	t.row("Unhealthy", st.UnhealthyCount)
	t.row("Registry", st.Registry)
	if merr != nil {
		in.say("the figures of the last hour: %s", describe(merr))
		m = nil
	} else {
		t.row("Last hour", fmt.Sprintf("%d provisions, %d crashes, %d restarts", m.Provisions1h, m.Crashes1h, m.Restarts1h))
		t.row("Average boot", fmt.Sprintf("%.0f ms", m.AvgBootMS))
		t.row("Ever", fmt.Sprintf("%d provisions, %d destroys", m.TotalProvisions, m.TotalDestroys))
	}
	return in.show(struct {
		*client.FleetStatus
		Metrics *client.Metrics `json:"metrics,omitempty"`
	}{st, m}, t)
}

// service shows the admin how the service is.
func service(ctx context.Context, in *invocation) error {
	h, err := in.client.Health(ctx)
	if err != nil {
		return err
	}
	t := &table{}
	t.row("Service", h.Status)
	for _, name := range slices.Sorted(maps.Keys(h.Subsystems)) {
		t.row("  "+name, h.Subsystems[name])
	}
	t.row("Registry", h.Registry)
	products, perr := in.client.Products(ctx)
	if perr != nil && h.Status == "ok" {
		return perr
	}
	whole, werr := in.client.Whole(ctx)
	if !in.common.json {
		if werr == nil {
			t.row("Quarantined", whole.Quarantined)
			t.row("Keys missing", whole.KeysMissing)
			t.row("Unreadable records", whole.Unreadable.Engines+whole.Unreadable.Products+whole.Unreadable.Other)
			t.row("Pooled volumes", whole.PooledVolumes)
			t.row("Warm engines", whole.WarmEngines)
			t.row("Unreachable volumes", whole.UnreachableVolumes)
		} else {
			in.say("the pools: %s", describe(werr))
		}
		if err := t.print(in.env.Out); err != nil {
			return err
		}
		if werr == nil && len(whole.WarmPools) > 0 {
			if _, err := fmt.Fprintln(in.env.Out); err != nil {
				return err
			}
			if err := warmTable(whole.WarmPools).print(in.env.Out); err != nil {
				return err
			}
		}
		if perr != nil {
			in.say("the products: %s", describe(perr))
			return nil
		}
		if _, err := fmt.Fprintln(in.env.Out); err != nil {
			return err
		}
		return productTable(products).print(in.env.Out)
	}
	answer := map[string]any{"status": h.Status, "registry": h.Registry, "subsystems": h.Subsystems}
	if perr == nil {
		answer["products"] = products.Products
	}
	if werr == nil {
		answer["fleet"] = whole
	}
	return in.printJSON(answer, "  ")
}

// warmTable shows the warm engines by kind.
func warmTable(pools []client.WarmPool) *table {
	t := &table{}
	t.row("WARM ENGINES OF", "CPU MHZ", "MEMORY MB", "NODE POOL", "WANTED", "READY", "MAKING", "KIND", "HELD UP UNTIL", "BY")
	for _, p := range pools {
		t.row(p.Image, p.CPUMHz, p.MemoryMB, p.NodePool, p.Wanted, p.Ready, p.Making, p.Fingerprint, p.RetryAt, p.Error)
	}
	return t
}
