package brains

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestOtherWriter: somebody else than the engine's first process writes into its brain, as a
// child of it may. A snapshot of a running engine says so. Nobody may write to the brain of a
// stopped one, so of that there is none until the writer has ended.
func TestOtherWriter(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c, ctx, s := r.Product(t, nil), t.Context(), harness.OpenStores(t, harness.Shared)
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	at := brainOf(t, s, e.EngineID)
	for n := range 400 { // a copy takes a while
		if err := os.WriteFile(filepath.Join(at, fmt.Sprint("ballast", n)), make([]byte, 256<<10), 0o644); err != nil { //nolint:gosec // G306: the worker has another user
			t.Fatal(err)
		}
	}
	over := make(chan struct{})
	var writer sync.WaitGroup
	end := sync.OnceFunc(func() { close(over); writer.Wait() })
	defer end()
	writer.Go(func() {
		temp := filepath.Join(at, "temp")
		for {
			select {
			case <-over:
				return
			default:
			}
			if err := errors.Join(os.WriteFile(temp, []byte("x"), 0o644), os.Remove(temp)); err != nil { //nolint:gosec // G306: the worker has another user
				t.Error(err)
				return
			}
		}
	})
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if taken.Changed == 0 || r.Logs.Count("another process than the engine's first one") == 0 {
		t.Errorf("it is not told that somebody else wrote: %+v", taken)
	}
	unharmed(t, c, e, "before")
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 507, "SNAPSHOT_FAILED")
	end()
	settled(t, c, "u")
	if taken, err = c.Snapshot(ctx, "u", ""); err != nil || taken.Changed != 0 {
		t.Fatalf("when nobody writes: %+v, %v", taken, err)
	}
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
}
