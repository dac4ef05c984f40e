package faults

import (
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestStrayOperation: the first write of an operation is given up as lost, and takes effect
// when nobody waits for it any more, as with a paused Consul agent. The replica that owns
// the operation finds that it does not run, and runs it.
func TestStrayOperation(t *testing.T) {
	t.Parallel()
	const prefix = "stray/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix})
	c := r.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	s := harness.OpenStores(t, harness.Shared)
	owners := replicas(s, prefix)
	if len(owners) != 1 {
		t.Fatalf("replicas %v", owners)
	}
	s.Edit(prefix, "u", func(row map[string]any) {
		now := time.Now().UTC()
		row["desired"] = "stopped"
		row["op"] = map[string]any{
			"id": "late", "kind": "stop", "step": "scale-down", "owner": owners[0], "from": "running", "began_at": now, "deadline": now.Add(time.Minute),
		}
	})
	harness.Eventually(t, "the operation is run", func() error {
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

// TestDestroyThatNobodyAnswers: a destroy waits for the acknowledgement of a replica whose
// operation it interrupted, but that replica does not run the operation, for example
// because its acknowledgement was lost with its session, or because it has taken over the
// destroy itself.
func TestDestroyThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	for name, owned := range map[string]bool{"by another": true, "taken over": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := "unanswered-" + strings.ReplaceAll(name, " ", "-") + "/"
			vars := map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1"}
			s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
			r := harness.StartService(t, harness.Shared, vars)
			c := r.Product(t, nil)
			e, err := c.Provision(ctx, "u", "")
			if err != nil {
				t.Fatal(err)
			}
			first := replicas(s, prefix)
			if len(first) != 1 {
				t.Fatalf("replicas %v", first)
			}
			owner := "gone"
			if owned {
				harness.StartService(t, harness.Shared, vars)
				for _, id := range replicas(s, prefix) {
					if id != first[0] {
						owner = id
					}
				}
			}
			s.Edit(prefix, "u", func(row map[string]any) {
				now := time.Now().UTC()
				row["state"], row["desired"] = "destroying", "destroying"
				row["op"] = map[string]any{
					"id": "unanswered", "kind": "destroy", "step": "settle", "owner": owner, "supersedes": first[0], "from": "running", "began_at": now, "deadline": now.Add(time.Minute),
				}
			})
			harness.Eventually(t, "the engine is destroyed", func() error {
				if left := s.Traces(e.EngineID); len(left) > 0 {
					return fmt.Errorf("left: %v", left)
				}
				return nil
			})
		})
	}
}

// replicas returns the ids of the existing replicas.
func replicas(s *harness.Stores, prefix string) (ids []string) {
	s.T.Helper()
	keys, _, err := s.Consul.KV().Keys(prefix+"replicas/", "", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, key := range keys {
		ids = append(ids, path.Base(key))
	}
	return ids
}
