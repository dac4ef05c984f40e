package brains

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestUnreadBrain: a brain that no snapshot can be taken of is replaced all the same by a
// restore, which is needed most then. Its volume is kept until the engine is destroyed.
func TestUnreadBrain(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c, ctx, s := r.Product(t, nil), t.Context(), harness.OpenStores(t, harness.Shared)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before")
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	deep := makeUnreadable(t, s, e.EngineID)
	harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 507, "SNAPSHOT_FAILED")
	unharmed(t, c, e, "before")
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(deep); err != nil {
		t.Errorf("the brain that nobody could read was removed: %v", err)
	}
	if _, err := c.Snapshot(ctx, "u", ""); err != nil {
		t.Errorf("a snapshot of the restored brain: %v", err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing is left", func() error {
		if left := s.Traces(e.EngineID); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		_, err := os.Stat(deep)
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the former brain is there: %w", err)
		}
		return nil
	})
}

// makeUnreadable makes directories in an engine's brain that are nested deeper than a snapshot
// can have them, and returns the deepest.
func makeUnreadable(t *testing.T, s *harness.Stores, engineID string) (deep string) {
	t.Helper()
	deep = filepath.Join(brainOf(t, s, engineID), strings.Repeat("d/", 410))
	if err := os.MkdirAll(deep, 0o755); err != nil { //nolint:gosec // G301: the worker has another user
		t.Fatal(err)
	}
	return deep
}

// TestOrderIsRemoved: somebody deletes the orders of workers in Nomad before they are read.
// The caller is told, and the engine has not been touched.
func TestOrderIsRemoved(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, nil)
	c, ctx, s := r.Product(t, nil), t.Context(), harness.OpenStores(t, harness.Shared)
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	over, removed := context.WithCancel(ctx)
	defer removed()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for over.Err() == nil {
			orders, _, err := s.Nomad.Variables().PrefixList("nomad/jobs/orch-brain-"+e.EngineID, nil)
			if err != nil {
				continue
			}
			for _, order := range orders {
				_, _ = s.Nomad.Variables().Delete(order.Path, nil) // the service may have done so
			}
		}
	}()
	restoring := begin(func() (*client.Engine, error) { return c.Restore(ctx, "u", taken.SnapshotID) })
	got := <-restoring
	removed()
	<-ended
	harness.WantCode(t, got.err, 507, "SNAPSHOT_FAILED")
	settled(t, c, "u")
	unharmed(t, c, e, "before")
}

// TestUploadIsRemoved: a rule of the bucket, or somebody, aborts the upload of a snapshot.
func TestUploadIsRemoved(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c, ctx := r.Product(t, nil), t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	h := b.hold(t, e.EngineID, isPart, nil)
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "u", "") })
	h.await(t)
	if _, err := b.Sweep(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	h.release()
	harness.WantCode(t, (<-taking).err, 507, "SNAPSHOT_FAILED")
	settled(t, c, "u")
	unharmed(t, c, e, "before")
	if _, err := c.Snapshot(ctx, "u", ""); err != nil {
		t.Error(err)
	}
}

// TestLastMoveFails: the only engine of a node does not boot on the other one. Until its move
// is undone, its node is not said to be empty, and afterwards the engine runs there again.
func TestLastMoveFails(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	harness.WatchBrains(t, stack)
	whole, err := os.ReadFile(filepath.Join(harness.BinDir, "reference-engine"))
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(harness.BinDir, "last-to-move")
	install := func(program []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(image+".new", program, 0o755), os.Rename(image+".new", image)); err != nil { //nolint:gosec // G306: a program
			t.Fatal(err)
		}
	}
	install(whole)
	b := newBucket(t)
	r := harness.StartService(t, stack, b.vars("ORCH_VOLUME_POOL=0", "ORCH_BOOT_TIMEOUT_S=25"))
	c, admin, ctx, s := r.Product(t, harness.AnyImage), r.Admin(), t.Context(), harness.OpenStores(t, stack)
	made := harness.Provision(t, c, "u", "last-to-move")
	harness.Remember(t, made, made.APIKey, "the memory of u")
	first := s.NodeOf(made.EngineID)
	h := b.hold(t, made.EngineID, isFetch, nil)
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	h.await(t)
	install([]byte("#!/bin/sh\nexec sleep 300\n"))
	h.release()
	boots := time.Time{}
	harness.Eventually(t, "the move is undone", func() error {
		progress, err := admin.Evacuation(ctx, first)
		if err != nil {
			return err
		}
		if progress.Status != "moving" || progress.Left != 1 {
			t.Fatalf("%+v", progress)
		}
		now, err := c.Engine(ctx, "u")
		if err != nil {
			return err
		}
		if op := now.Operation; op != nil && op.Kind == "move" {
			if op.Step == "boot" && boots.IsZero() {
				boots = time.Now()
			}
			if !boots.IsZero() && time.Since(boots) > 10*time.Second { // more than the looks after which a node is empty
				install(whole)
			}
			return fmt.Errorf("%+v", op)
		}
		if boots.IsZero() || len(progress.Failed) != 1 {
			return fmt.Errorf("%+v", progress)
		}
		return nil
	})
	install(whole)
	harness.AwaitEngine(t, c, "u", "running", "")
	e := evacuated{t: t, c: c, s: s, engines: []*client.Engine{made}}
	e.remember("u")
	if at := s.NodeOf(made.EngineID); at != first {
		t.Errorf("it is on %s", at)
	}
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	e.arrive(admin, first, nodesBut(t, s, first)[0])
}
