package commands

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func status() *spec {
	return &spec{
		name: "status", needs: needsEither,
		synopsis: "Show the state of the product's engines, or of the service",
		about: `With a platform key: the numbers of the product's engines, and the figures of the
last hour. As the admin (-admin, or no platform key): the state of the service's
dependencies, its pools, and all products.`,
		examples: []string{"orch status", "orch status -admin", "orch status -json | jq .by_status.failed"},
		run: func(ctx context.Context, in *invocation) error {
			if in.client.PlatformKey != "" {
				return fleet(ctx, in)
			}
			return serviceStatus(ctx, in)
		},
	}
}

// fleet shows the product's engines and figures.
func fleet(ctx context.Context, in *invocation) error {
	st, err := in.client.Status(ctx)
	if err != nil {
		return err
	}
	// The figures are from another store. If they are not available, the counts are shown
	// without them.
	m, merr := in.client.Metrics(ctx)
	t := &cmdline.Table{}
	t.Row("Health", cmdline.State(st.Health))
	t.Row("Engines", st.Total)
	for _, state := range client.States {
		t.Row("  "+state, st.ByStatus[state])
	}
	t.Row("Unhealthy", st.UnhealthyCount)
	t.Row("Registry", cmdline.State(st.Registry))
	snapshotRows(in, t, st.Snapshots)
	if merr != nil {
		in.Say("the figures of the last hour: %s", describe(merr))
		m = nil
	} else {
		t.Row("Last hour", fmt.Sprintf("%d provisions, %d crashes, %d restarts", m.Provisions1h, m.Crashes1h, m.Restarts1h))
		t.Row("Average boot", fmt.Sprintf("%.0f ms", m.AvgBootMS))
		t.Row("Ever", fmt.Sprintf("%d provisions, %d destroys", m.TotalProvisions, m.TotalDestroys))
	}
	// Without the fields that only the admin gets.
	return in.Show(struct {
		Total          int                   `json:"total"`
		ByStatus       map[string]int        `json:"by_status"`
		Health         string                `json:"health"`
		UnhealthyCount int                   `json:"unhealthy_count"`
		Registry       string                `json:"registry"`
		Snapshots      client.SnapshotStatus `json:"snapshots"`
		Metrics        *client.Metrics       `json:"metrics,omitempty"`
	}{st.Total, st.ByStatus, st.Health, st.UnhealthyCount, st.Registry, st.Snapshots, m}, t)
}

// snapshotRows shows how well brains are protected by snapshots.
func snapshotRows(in *invocation, t *cmdline.Table, st client.SnapshotStatus) {
	point := "-"
	if st.RecoveryPointS > 0 {
		point = (time.Duration(st.RecoveryPointS) * time.Second).String()
	}
	t.Row("Recovery point", fmt.Sprintf("%s, %d overdue, %d without a snapshot", point, st.Overdue, st.Without))
	if st.RecoveryTimeMS > 0 {
		t.Row("Recovery time", fmt.Sprintf("%d ms", st.RecoveryTimeMS))
	}
	if st.FailedDrills+st.DrillsOverdue > 0 || !st.DrilledAt.IsZero() {
		last := "never"
		if !st.DrilledAt.IsZero() {
			last = st.DrilledAt.Format(time.RFC3339)
		}
		t.Row("Restore drills", fmt.Sprintf("%d failed, %d overdue, last success %s", st.FailedDrills, st.DrillsOverdue, last))
	}
	if st.Advice != "" {
		in.Say("restore drills: %s", st.Advice)
	}
}

// serviceStatus shows the state of the service to the admin.
func serviceStatus(ctx context.Context, in *invocation) error {
	h, err := in.client.Health(ctx)
	if err != nil {
		return err
	}
	t := &cmdline.Table{}
	t.Row("Service", cmdline.State(h.Status))
	for _, name := range slices.Sorted(maps.Keys(h.Subsystems)) {
		t.Row("  "+name, cmdline.State(h.Subsystems[name]))
	}
	t.Row("Registry", cmdline.State(h.Registry))
	products, perr := in.client.Products(ctx)
	if perr != nil && h.Status == "ok" {
		return perr
	}
	whole, werr := in.client.Whole(ctx)
	if !in.JSON {
		if werr == nil {
			t.Row("Quarantined", whole.Quarantined)
			t.Row("Keys missing", whole.KeysMissing)
			t.Row("Unreadable records", whole.Unreadable.Engines+whole.Unreadable.Products+whole.Unreadable.Other)
			t.Row("Pooled volumes", whole.PooledVolumes)
			t.Row("Warm engines", whole.WarmEngines)
			t.Row("Unreachable volumes", whole.UnreachableVolumes)
			snapshotRows(in, t, whole.Snapshots)
		} else {
			in.Say("the pools: %s", describe(werr))
		}
		if err := in.Show(nil, t); err != nil {
			return err
		}
		if werr == nil && len(whole.WarmPools) > 0 {
			if _, err := fmt.Fprintln(in.Env.Out); err != nil {
				return err
			}
			if err := in.Show(nil, warmTable(whole.WarmPools)); err != nil {
				return err
			}
		}
		if perr != nil {
			in.Say("the products: %s", describe(perr))
			return nil
		}
		if _, err := fmt.Fprintln(in.Env.Out); err != nil {
			return err
		}
		return in.Show(nil, productTable(products))
	}
	answer := map[string]any{"status": h.Status, "registry": h.Registry, "subsystems": h.Subsystems}
	if perr == nil {
		answer["products"] = products.Products
	}
	if werr == nil {
		answer["fleet"] = whole
	}
	return in.PrintJSON(answer, "  ")
}

// warmTable shows the warm engines by kind.
func warmTable(pools []client.WarmPool) *cmdline.Table {
	t := &cmdline.Table{}
	t.Head("WARM ENGINES OF", "CPU MHZ", "MEMORY MB", "NODE POOL", "WANTED", "READY", "MAKING", "KIND", "HELD UP UNTIL", "BY")
	for _, p := range pools {
		t.Row(p.Image, p.CPUMHz, p.MemoryMB, p.NodePool, p.Wanted, p.Ready, p.Making, p.Fingerprint, p.RetryAt, p.Error)
	}
	return t
}
