package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// TestStrayOperation: the first write of an operation is given up as lost, and
// comes to be when nobody looks for it any more, as with a Consul agent that was
// paused. The replica that owns it finds that it does not run, and runs it.
func TestStrayOperation(t *testing.T) {
	t.Parallel()
	const prefix = "stray/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix})
	c := r.product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	s := openStores(t, shared)
	owners, _, err := s.consul.KV().Keys(prefix+"replicas/", "", nil)
	if err != nil || len(owners) != 1 {
		t.Fatalf("replicas %v, %v", owners, err)
	}
	key := s.rows(prefix)[0]
	pair, _, err := s.consul.KV().Get(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	row := map[string]any{}
	if err := json.Unmarshal(pair.Value, &row); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	row["desired"] = "stopped"
	row["op"] = map[string]any{
		"id": "late", "kind": "stop", "step": "scale-down", "owner": path.Base(owners[0]), "from": "running", "began_at": now, "deadline": now.Add(time.Minute),
	}
	value, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	shard, _, _ := strings.Cut(strings.TrimPrefix(key, prefix+"engines/"), "/")
	ok, _, _, err := s.consul.KV().Txn(consul.KVTxnOps{
		{Verb: consul.KVCAS, Key: key, Value: value, Index: pair.ModifyIndex},
		{Verb: consul.KVSet, Key: prefix + "changes/" + shard, Value: []byte("late")},
	}, nil)
	if err != nil || !ok {
		t.Fatalf("the late write: %t, %v", ok, err)
	}
	eventually(t, 60*time.Second, "the operation is run", func() error {
		got, err := c.Engine(ctx, "u")
		if err != nil || got.Status != "stopped" || got.EngineID != e.EngineID {
			return fmt.Errorf("%+v, %w", got, err)
		}
		return nil
	})
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}
