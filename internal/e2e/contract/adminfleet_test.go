package contract

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestAdminFleet: the admin sees the engines of all products, with owner and node, and what is
// on each node; nobody's key; and a product still sees only its own.
func TestAdminFleet(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "2"})
	r, ctx, admin := all[0], t.Context(), all[0].Admin()
	products := []*client.Client{r.Product(t, harness.AnyImage), r.Product(t, harness.AnyImage)}
	engines := map[string]*client.Engine{}
	var want []string
	for i, user := range []string{"a", "b", "by-id/c", "d"} {
		e, err := products[i%2].Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		engines[user], want = e, append(want, user)
	}
	if _, err := products[1].Stop(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(products[0].Provision(ctx, "bad", "reference-engine.exit-at-start")), 502, "ENGINE_BOOT_FAILED")
	want = append(want, "bad")

	list := func(f client.FleetFilter) *client.EngineList {
		t.Helper()
		l, err := admin.FleetEngines(ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	of := func(engines []client.Engine) (users []string) {
		for _, e := range engines {
			users = append(users, e.UserID)
		}
		return users
	}
	whole := list(client.FleetFilter{})
	if got := of(whole.Engines); !slices.Equal(got, want) || whole.Total != len(want) {
		t.Fatalf("listed are %v of %d, want %v", got, whole.Total, want)
	}
	owners := map[string]string{} // product_ids by user
	for _, e := range whole.Engines {
		if e.APIKey != "" || e.ProductID == "" || e.ProductSlug == "" || e.NodeID == "" {
			t.Errorf("listed as %+v", e)
		}
		owners[e.UserID] = e.ProductID
	}
	first := whole.Engines[0]
	var there []string // the users on its node
	counts := map[string]int{}
	for _, e := range whole.Engines {
		if e.NodeID == first.NodeID {
			there = append(there, e.UserID)
			counts[e.Status]++
		}
	}
	if owners["a"] != owners["by-id/c"] || owners["a"] == owners["b"] {
		t.Errorf("the owners are %v", owners)
	}
	for name, c := range map[string]struct {
		filter client.FleetFilter
		want   []string
	}{
		"product": {client.FleetFilter{ProductID: owners["b"]}, []string{"b", "d"}}, "status": {client.FleetFilter{Status: client.Stopped}, []string{"d"}},
		"engine": {client.FleetFilter{EngineID: engines["b"].EngineID}, []string{"b"}}, "user": {client.FleetFilter{UserID: "by-id/c"}, []string{"by-id/c"}},
		"node": {client.FleetFilter{NodeID: first.NodeID}, there}, "no node": {client.FleetFilter{NodeID: "no-such-node"}, nil},
		"reason": {client.FleetFilter{Reason: "crashed"}, []string{"bad"}}, "both": {client.FleetFilter{ProductID: owners["a"], Status: client.Failed}, []string{"bad"}},
		"no product": {client.FleetFilter{ProductID: harness.NoProduct}, nil}, "warm": {client.FleetFilter{ProductID: "warm"}, nil},
	} {
		if got := list(c.filter); !slices.Equal(of(got.Engines), c.want) || got.Total != len(c.want) {
			t.Errorf("%s: %v of %d, want %v", name, of(got.Engines), got.Total, c.want)
		}
	}
	var paged []client.Engine
	for e, err := range admin.AllFleetEngines(ctx, client.FleetFilter{Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		paged = append(paged, e)
	}
	if got := of(paged); !slices.Equal(got, want) {
		t.Errorf("by cursor: %v", got)
	}

	// Whose engine is this? Either replica knows.
	for _, r := range all {
		e, err := r.Admin().EngineByID(ctx, engines["by-id/c"].EngineID)
		if err != nil || e.UserID != "by-id/c" || e.ProductID != owners["a"] || e.NodeID == "" || e.APIKey != "" {
			t.Errorf("%+v, %v", e, err)
		}
	}
	for _, id := range []string{harness.NoProduct, "e", "../status", engines["a"].EngineID + "x"} {
		harness.WantCode(t, harness.ErrOf(admin.EngineByID(ctx, id)), 404, "ENGINE_NOT_FOUND")
	}
	// It takes no user_id from a product.
	if e, err := products[0].Engine(ctx, "by-id/c"); err != nil || e.APIKey != engines["by-id/c"].APIKey {
		t.Errorf("%+v, %v", e, err)
	}

	nodes, err := admin.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(nodes.Nodes, func(n client.Node) bool { return n.NodeID == first.NodeID })
	if i < 0 || nodes.Total != len(nodes.Nodes) {
		t.Fatalf("the nodes are %+v", nodes)
	}
	n := nodes.Nodes[i]
	if n.Name == "" || n.NodePool != "default" || n.Status != "ready" || !n.Eligible || n.ConsulAgent != "ok" || n.Room.MemoryMB < 1 || n.Room.CPUMHz < 1 || n.Room.Ports < 1 ||
		len(n.Engines) != len(client.States) {
		t.Errorf("the node is %+v", n)
	}
	for _, state := range client.States {
		if n.Engines[state] != counts[state] {
			t.Errorf("the node has %d %s engines, want %d", n.Engines[state], state, counts[state])
		}
	}
	harness.Eventually(t, "the node has ready volumes", func() error {
		nodes, err := admin.Nodes(ctx)
		if err != nil || nodes.Nodes[i].ReadyVolumes == 0 {
			return fmt.Errorf("%+v, %w", nodes, err)
		}
		return nil
	})

	// With both keys the call is the admin's; a wrong admin key is not made up for.
	both := *products[0]
	both.AdminKey = harness.AdminKey
	var got struct{ Total int }
	if err := both.Do(ctx, http.MethodGet, "/engines", nil, &got); err != nil || got.Total != len(want) {
		t.Errorf("with both keys: %+v, %v", got, err)
	}
	both.AdminKey = "not-the-key-of-the-admin"
	harness.WantCode(t, both.Do(ctx, http.MethodGet, "/engines", nil, nil), 401, "INVALID_ADMIN_KEY")
	for _, bad := range []string{"offset=1", "status=dead", "limit=0", "cursor=nonsense", "user_id=", "node=x"} {
		harness.WantCode(t, admin.Do(ctx, http.MethodGet, "/engines?"+bad, nil, nil), 400, "INVALID_REQUEST")
	}
	for _, bad := range []string{"product_id=" + owners["b"], "node_id=x", "engine_id=x", "user_id=a", "reason=crashed"} {
		harness.WantCode(t, products[0].Do(ctx, http.MethodGet, "/engines?"+bad, nil, nil), 400, "INVALID_REQUEST")
	}
	if got := users(harness.ListEngines(t, products[1], "")); !slices.Equal(got, []string{"b", "d"}) {
		t.Errorf("the product lists %v", got)
	}
	for i, user := range []string{"a", "b", "by-id/c", "d", "bad"} {
		if _, err := products[i%2].Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	harness.WantCode(t, harness.ErrOf(admin.EngineByID(ctx, engines["a"].EngineID)), 404, "ENGINE_NOT_FOUND")
}
