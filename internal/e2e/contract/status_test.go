package contract

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// fleetStatus is GET /status as products and the admin see it.
type fleetStatus struct {
	Total              int
	ByStatus           map[string]int `json:"by_status"`
	Health             string
	Unhealthy          int  `json:"unhealthy_count"`
	UnreachableVolumes *int `json:"unreachable_volumes"`
	PooledVolumes      *int `json:"pooled_volumes"`
}

func statusOf(ctx context.Context, c *client.Client) (st fleetStatus, err error) {
	return st, c.Do(ctx, http.MethodGet, "/status", nil, &st)
}

// The admin sees all products together, and what remains of destroyed engines; a product
// sees neither.
func TestStatusOfTheWholeService(t *testing.T) {
	t.Parallel()
	const prefix = "whole-status/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1"})
	ctx := t.Context()
	admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	one, two := r.Product(t, nil), r.Product(t, harness.AnyImage)
	for user, c := range map[string]*client.Client{"u": one, "v": two} {
		if _, err := c.Provision(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
	}
	harness.WantCode(t, harness.ErrOf(two.Provision(ctx, "bad", "reference-engine.exit-at-start")), 502, "ENGINE_BOOT_FAILED")
	// An unreachable volume on a node that no cluster has is kept.
	volume := `{"engine_id": "gone", "node_id": "no-such-node", "volume_id": "v"}`
	if _, err := harness.OpenStores(t, harness.Shared).Consul.KV().Put(&consul.KVPair{Key: prefix + "graves/gone", Value: []byte(volume)}, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the volume pool is full", func() error {
		st, err := statusOf(ctx, admin)
		if err != nil || st.PooledVolumes == nil || *st.PooledVolumes != 2 { // one on each node
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	})
	st, err := statusOf(ctx, admin)
	if err != nil || st.Total != 3 || len(st.ByStatus) != 6 || st.ByStatus["running"] != 2 || st.ByStatus["failed"] != 1 ||
		st.Health != "critical" || st.Unhealthy != 1 || st.UnreachableVolumes == nil || *st.UnreachableVolumes != 1 {
		t.Errorf("the admin's status is %+v, %v", st, err)
	}
	for c, want := range map[*client.Client]int{one: 1, two: 2} {
		if st, err := statusOf(ctx, c); err != nil || st.Total != want || st.UnreachableVolumes != nil || st.PooledVolumes != nil {
			t.Errorf("a product's status is %+v, %v, want %d engines", st, err, want)
		}
	}
	wrong := &client.Client{BaseURL: r.URL, AdminKey: "nonsense-of-16-characters", PlatformKey: one.PlatformKey}
	harness.WantCode(t, harness.ErrOf(statusOf(ctx, wrong)), 401, "INVALID_ADMIN_KEY")
	harness.WantCode(t, admin.Do(ctx, http.MethodGet, "/status?x=1", nil, nil), 400, "INVALID_REQUEST")
	for user, c := range map[string]*client.Client{"u": one, "v": two, "bad": two} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}
