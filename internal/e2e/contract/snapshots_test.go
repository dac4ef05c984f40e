package contract

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// snapshotting starts a service with a snapshot store of its own, and returns its directory.
func snapshotting(t *testing.T) (*harness.Replica, string) {
	t.Helper()
	store := t.TempDir()
	return harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2", "ORCH_SNAPSHOT_URL": "file://" + store}), store
}

// knowing returns nil if the brain of an engine contains all of yes, and nothing of no.
func knowing(t *testing.T, e *client.Engine, yes, no []string) {
	t.Helper()
	brain := harness.Export(t, e, e.APIKey)
	for _, what := range yes {
		if err := brain.Knows(what); err != nil {
			t.Error(err)
		}
	}
	for _, what := range no {
		if brain.Knows(what) == nil {
			t.Errorf("the brain of %s knows %q", e.UserID, what)
		}
	}
}

// TestSnapshots: snapshots are taken, listed and deleted; a restore and a fork have the brain
// of the snapshot, and a key of their own.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	r, _ := snapshotting(t)
	c := r.Product(t, map[string]any{"allowed_images": []string{"*", "*/*"}, "max_engines": 3})
	ctx, key := t.Context(), client.IdempotencyKey
	e := provisioned(t, c, "u", "")
	if list, err := c.Snapshots(ctx, "u", client.SnapshotPage{}); err != nil || len(list.Snapshots) != 0 || list.NextCursor != "" {
		t.Fatalf("before the first one: %+v, %v", list, err)
	}
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", "")), 404, "SNAPSHOT_NOT_FOUND")

	harness.Remember(t, e, e.APIKey, "one")
	first, err := c.Snapshot(ctx, "u", "the first", key("first"))
	if err != nil {
		t.Fatal(err)
	}
	if first.SnapshotID == "" || first.EngineID != e.EngineID || first.UserID != "u" || first.Label != "the first" || first.EngineVersion == "" || first.Trigger == "" ||
		first.Bytes <= 0 || first.StoredBytes <= 0 || first.FrozenMS < 0 || time.Since(first.CreatedAt) > time.Hour {
		t.Errorf("the snapshot is %+v", first)
	}
	if again, err := c.Snapshot(ctx, "u", "the first", key("first")); err != nil || *again != *first {
		t.Errorf("the same call with the same key: %+v, %v", again, err)
	}
	harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "another", key("first"))), 422, "IDEMPOTENCY_KEY_REUSED")
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", "", key("first"))), 422, "IDEMPOTENCY_KEY_REUSED")
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", "", key("first"))), 422, "IDEMPOTENCY_KEY_REUSED")

	// Another one, whose end is not waited for. The engine keeps its address and its key.
	harness.Remember(t, e, e.APIKey, "two")
	begun(t, "snapshot", harness.ErrOf(c.Snapshot(client.RespondAsync(ctx, 0), "u", "")))
	if shown := ended(t, c, "u"); shown.LastOperation.Kind != "snapshot" || shown.Status != client.Running || shown.URL != e.URL || shown.APIKey != e.APIKey {
		t.Errorf("after a snapshot: %+v", shown)
	}
	var all []client.Snapshot
	for s, err := range c.AllSnapshots(ctx, "u") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) != 2 || all[1] != *first || all[0].CreatedAt.Before(first.CreatedAt) {
		t.Fatalf("the list is %+v", all)
	}
	page, err := c.Snapshots(ctx, "u", client.SnapshotPage{Limit: 1})
	if err != nil || len(page.Snapshots) != 1 || page.Snapshots[0] != all[0] || page.NextCursor == "" {
		t.Fatalf("the first page is %+v, %v", page, err)
	}
	if page, err = c.Snapshots(ctx, "u", client.SnapshotPage{Limit: 1, Cursor: page.NextCursor}); err != nil || len(page.Snapshots) != 1 || page.Snapshots[0] != *first || page.NextCursor != "" {
		t.Errorf("the last page is %+v, %v", page, err)
	}

	restored, err := c.Restore(ctx, "u", first.SnapshotID, key("restore"))
	if err != nil {
		t.Fatal(err)
	}
	if restored.EngineID != e.EngineID || restored.APIKey == e.APIKey || restored.Status != client.Running {
		t.Errorf("restored: engine %s, status %s, another key: %t", restored.EngineID, restored.Status, restored.APIKey != e.APIKey)
	}
	knowing(t, restored, []string{"one"}, []string{"two"})
	if same, err := c.Restore(ctx, "u", first.SnapshotID, key("restore")); err != nil || same.APIKey != restored.APIKey {
		t.Errorf("the same restore with the same key: %v", err)
	}
	list, err := c.Snapshots(ctx, "u", client.SnapshotPage{})
	if err != nil || len(list.Snapshots) != 3 || list.Snapshots[0].Trigger != "restore" {
		t.Fatalf("after a restore: %+v, %v", list, err)
	}
	// The brain that was replaced is not lost.
	begun(t, "restore", harness.ErrOf(c.Restore(client.RespondAsync(ctx, 0), "u", list.Snapshots[0].SnapshotID)))
	knowing(t, ended(t, c, "u"), []string{"one", "two"}, nil)

	forked, err := c.Fork(ctx, "u", "v", first.SnapshotID, key("fork"))
	if err != nil {
		t.Fatal(err)
	}
	if forked.UserID != "v" || forked.EngineID == e.EngineID || forked.APIKey == restored.APIKey {
		t.Errorf("the fork is engine %s of %s", forked.EngineID, forked.UserID)
	}
	knowing(t, forked, []string{"one"}, []string{"two"})
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", "")), 409, "ENGINE_ALREADY_EXISTS")
	// Snapshots belong to one engine.
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "v", first.SnapshotID)), 404, "SNAPSHOT_NOT_FOUND")
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "v", "w", first.SnapshotID)), 404, "SNAPSHOT_NOT_FOUND")
	harness.WantCode(t, c.DeleteSnapshot(ctx, "v", first.SnapshotID), 404, "SNAPSHOT_NOT_FOUND")

	_, err = c.Fork(client.RespondAsync(ctx, 0), "u", "w", "")
	var under *client.UnderWay
	if !errors.As(err, &under) || under.Engine.UserID == "" {
		t.Fatalf("a fork that is not waited for: %v", err)
	}
	harness.Eventually(t, "it ends", func() error { return harness.InState(t, c, "w", client.Running) })
	knowing(t, ended(t, c, "w"), []string{"one", "two"}, nil)
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "x", first.SnapshotID)), 429, "QUOTA_EXCEEDED")

	for _, id := range []string{"no-such-snapshot", "..", "%2F", "../../manifests/x", "\x00", "a b"} {
		harness.WantCode(t, c.DeleteSnapshot(ctx, "u", id), 404, "SNAPSHOT_NOT_FOUND")
		harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", id)), 404, "SNAPSHOT_NOT_FOUND")
	}
	if err := c.DeleteSnapshot(ctx, "u", first.SnapshotID); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, c.DeleteSnapshot(ctx, "u", first.SnapshotID), 404, "SNAPSHOT_NOT_FOUND")
	if list, err := c.Snapshots(ctx, "u", client.SnapshotPage{}); err != nil || slices.ContainsFunc(list.Snapshots, func(s client.Snapshot) bool { return s.SnapshotID == first.SnapshotID }) {
		t.Errorf("after its deletion: %+v, %v", list, err)
	}

	for _, user := range []string{"u", "v", "w"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	for name, call := range map[string]func() error{
		"snapshot": func() error { return harness.ErrOf(c.Snapshot(ctx, "u", "the first", key("first"))) },
		"restore":  func() error { return harness.ErrOf(c.Restore(ctx, "u", first.SnapshotID, key("restore"))) },
		"fork":     func() error { return harness.ErrOf(c.Fork(ctx, "u", "v", first.SnapshotID, key("fork"))) },
	} {
		t.Run("ErrDestroyed/"+name, func(t *testing.T) { harness.WantCode(t, call(), 409, "ENGINE_DESTROYED") })
	}
	for action, want := range map[string]int{"snapshot": 2, "restore": 2, "fork": 2, "snapshot_delete": 1, "erase": 1} {
		entries, _ := harness.AuditLog(t, c, "?action="+action)
		if n := len(slices.DeleteFunc(entries, func(e client.AuditEntry) bool { return e.Outcome != "ok" })); n < want {
			t.Errorf("%d audit entries of %s, want at least %d", n, action, want)
		}
	}
}

// TestSnapshotsAreRefused: a busy engine, a store that is away, and an object that is not
// what was stored; each leaves the engine and its brain as they were.
func TestSnapshotsAreRefused(t *testing.T) {
	t.Parallel()
	r, store := snapshotting(t)
	c := r.Product(t, harness.AnyImage)
	theAdmin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	product := harness.ProductOf(t, theAdmin, c)
	ctx := t.Context()
	e := provisioned(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "one")
	s, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	unharmed := func(t *testing.T) {
		t.Helper()
		if now, err := c.Engine(ctx, "u"); err != nil || now.Status != client.Running || now.URL != e.URL || now.APIKey != e.APIKey {
			t.Fatalf("the engine is %+v, %v", now, err)
		}
		knowing(t, e, []string{"one"}, nil)
		harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "v")), 404, "ENGINE_NOT_FOUND")
	}

	t.Run("ErrEngineBusy", func(t *testing.T) {
		begun(t, "provision", harness.ErrOf(c.Provision(client.RespondAsync(ctx, 0), "slow", "reference-engine.never-listen")))
		harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "slow", "")), 409, "ENGINE_BUSY")
		harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "slow", "")), 409, "ENGINE_BUSY")
		harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "slow", "v", "")), 409, "ENGINE_BUSY")
		if _, err := c.Destroy(ctx, "slow"); err != nil {
			t.Error(err)
		}
	})
	policy := func(t *testing.T, p client.Policy) {
		t.Helper()
		if _, err := theAdmin.SetPolicy(ctx, product, p); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("ErrCapacityExhausted", func(t *testing.T) {
		policy(t, client.Policy{MemoryMB: new(100_000_000)})
		harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", s.SnapshotID)), 503, "CAPACITY_EXHAUSTED")
		policy(t, client.Policy{})
		unharmed(t)
	})
	t.Run("ErrPolicyDenied", func(t *testing.T) {
		// A fork has the image of its engine, which the policy must allow as for a provision.
		policy(t, client.Policy{AllowedImages: []string{"*"}})
		provisioned(t, c, "other", "reference-engine.v2")
		if _, err := c.Snapshot(ctx, "other", ""); err != nil {
			t.Fatal(err)
		}
		policy(t, client.Policy{})
		harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "other", "v", "")), 403, "POLICY_DENIED")
		if _, err := c.Destroy(ctx, "other"); err != nil {
			t.Error(err)
		}
	})
	t.Run("ErrSnapshotStoreUnavailable", func(t *testing.T) {
		provisioned(t, c, "gone", "")
		if _, err := c.Snapshot(ctx, "gone", ""); err != nil {
			t.Fatal(err)
		}
		away := store + ".away"
		if err := os.Rename(store, away); err != nil {
			t.Fatal(err)
		}
		for name, call := range map[string]func() error{
			"snapshot": func() error { return harness.ErrOf(c.Snapshot(ctx, "u", "")) },
			"list":     func() error { return harness.ErrOf(c.Snapshots(ctx, "u", client.SnapshotPage{})) },
			"delete":   func() error { return c.DeleteSnapshot(ctx, "u", s.SnapshotID) },
			"restore":  func() error { return harness.ErrOf(c.Restore(ctx, "u", s.SnapshotID)) },
			"fork":     func() error { return harness.ErrOf(c.Fork(ctx, "u", "v", s.SnapshotID)) },
			"destroy":  func() error { return harness.ErrOf(c.Destroy(ctx, "gone")) },
			"stored":   func() error { return harness.ErrOf(theAdmin.StoredEngines(ctx, client.SnapshotPage{})) },
			"import":   func() error { return harness.ErrOf(theAdmin.Import(ctx, harness.NoProduct, "")) },
		} {
			t.Run(name, func(t *testing.T) { harness.WantCode(t, call(), 503, "SNAPSHOT_STORE_UNAVAILABLE") })
		}
		if err := os.Rename(away, store); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the destroy goes on when the store is back", func() error {
			_, err := c.Engine(ctx, "gone")
			if err == nil {
				return errors.New("the engine is still there")
			}
			return nil
		})
		unharmed(t)
	})
	t.Run("ErrSnapshotCorrupt", func(t *testing.T) {
		if err := alter(store, s.SnapshotID); err != nil {
			t.Fatal(err)
		}
		harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", s.SnapshotID)), 422, "SNAPSHOT_CORRUPT")
		harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", s.SnapshotID)), 422, "SNAPSHOT_CORRUPT")
		// A failed restore may have changed the key, but not what the engine knows.
		now, err := c.Engine(ctx, "u")
		if err != nil || now.Status != client.Running {
			t.Fatalf("the engine is %+v, %v", now, err)
		}
		knowing(t, now, []string{"one"}, nil)
	})
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

// alter changes one byte in the middle of a snapshot's object.
func alter(store, snapshotID string) error {
	found, err := filepath.Glob(filepath.Join(store, "objects", "*", snapshotID+".tar.zst.age"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the objects are %v, %w", found, err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(found[0], b, 0o600)
}

// begun fails unless a change was begun that its caller does not wait for.
func begun(t *testing.T, kind string, err error) {
	t.Helper()
	var under *client.UnderWay
	if !errors.As(err, &under) || under.Engine.Operation == nil || under.Engine.Operation.Kind != kind || under.Engine.APIKey != "" {
		t.Fatalf("%s: got %v, want 202", kind, err)
	}
}

// ended waits for the end of an engine's operation, which must succeed, and returns the
// engine.
func ended(t *testing.T, c *client.Client, user string) (e *client.Engine) {
	t.Helper()
	harness.Eventually(t, "the operation of "+user+" ends", func() (err error) {
		if e, err = c.Engine(t.Context(), user); err == nil && e.Operation != nil {
			err = fmt.Errorf("%s is at %s", e.Operation.Kind, e.Operation.Step)
		}
		return err
	})
	if e.LastOperation == nil || e.LastOperation.Outcome != "ok" {
		t.Fatalf("it ended with %+v", e.LastOperation)
	}
	return e
}

// provisioned provisions an engine that the test destroys itself.
func provisioned(t *testing.T, c *client.Client, user, version string) *client.Engine {
	t.Helper()
	e, err := c.Provision(t.Context(), user, version)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
