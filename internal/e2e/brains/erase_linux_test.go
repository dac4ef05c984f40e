package brains

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func isDelete(r *http.Request) bool { return r.Method == http.MethodDelete }

// TestNothingLeft: after a destroy the store has nothing of the engine: neither the object of
// a snapshot that failed while the store removed nothing, nor, if the store is away during the
// destroy, the snapshots of an engine whose row does not know them.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	const prefix = "nothing-left/"
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars("ORCH_CONSUL_PREFIX="+prefix))
	c := r.Product(t, nil)
	ctx := t.Context()
	nothing := func(t *testing.T, engineID string) {
		t.Helper()
		for _, directory := range []string{"objects", "manifests"} {
			if left := b.names(directory, engineID); len(left) > 0 {
				t.Errorf("%s: %v", directory, left)
			}
		}
	}
	t.Run("FailedSnapshot", func(t *testing.T) {
		e, err := c.Provision(ctx, "u", "")
		if err != nil {
			t.Fatal(err)
		}
		full, keeps := status(isManifest, 507, "InsufficientStorage"), status(isDelete, 503, "SlowDown")
		b.fails(e.EngineID, func(w http.ResponseWriter, r *http.Request) bool { return full(w, r) || keeps(w, r) })
		harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 507, "SNAPSHOT_FAILED")
		settled(t, c, "u")
		b.fails(e.EngineID, nil)
		if left := b.names("objects", e.EngineID); len(left) != 1 {
			t.Fatalf("the failed snapshot has left %v, so nothing is tested", left)
		}
		if _, err := c.Destroy(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		nothing(t, e.EngineID)
	})
	t.Run("UnknownSnapshots", func(t *testing.T) {
		e, err := c.Provision(ctx, "v", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Snapshot(ctx, "v", ""); err != nil {
			t.Fatal(err)
		}
		harness.OpenStores(t, harness.Shared).Edit(prefix, "v", func(row map[string]any) { delete(row, "snapshot") })
		b.fails(e.EngineID, status(isAny, 503, "SlowDown"))
		harness.WantCode(t, harness.ErrOf(c.Destroy(ctx, "v")), 503, "SNAPSHOT_STORE_UNAVAILABLE")
		b.fails(e.EngineID, nil)
		harness.Eventually(t, "the engine is gone", func() error {
			if _, err := c.Engine(ctx, "v"); codeOf(err) != "ENGINE_NOT_FOUND" {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
		nothing(t, e.EngineID)
	})
	b.noUploads(t)
}
