package brains

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestSnapshotAndRestore: an engine gets the memory of yesterday back, with a new key.
func TestSnapshotAndRestore(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "yesterday")
	began := time.Now()
	taken, err := c.Snapshot(ctx, "u", "before the upgrade")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("snapshot in %s: %+v", time.Since(began), taken)
	harness.Remember(t, e, e.APIKey, "today")
	if err := harness.InState(t, c, "u", "running"); err != nil {
		t.Error(err)
	}
	page, err := c.Snapshots(ctx, "u", client.SnapshotPage{})
	if err != nil || len(page.Snapshots) != 1 || page.Snapshots[0].SnapshotID != taken.SnapshotID {
		t.Fatalf("%+v, %v", page, err)
	}
	began = time.Now()
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restore in %s", time.Since(began))
	if restored.APIKey == e.APIKey || restored.EngineID != e.EngineID {
		t.Errorf("%+v", restored)
	}
	memory := harness.Export(t, restored, restored.APIKey)
	if err := memory.Knows("yesterday"); err != nil {
		t.Error(err)
	}
	if memory.Knows("today") == nil {
		t.Error("it knows what it learnt after the snapshot")
	}
	harness.KeyIs(t, restored, e.APIKey, false)
}

// TestFork: another user gets an engine with a copy of the memory, and both go on by
// themselves.
func TestFork(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	c := r.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "common")
	forked, err := c.Fork(ctx, "u", "copy", "")
	if err != nil {
		t.Fatal(err)
	}
	if forked.EngineID == e.EngineID || forked.APIKey == e.APIKey || forked.Status != "running" {
		t.Errorf("%+v", forked)
	}
	harness.Remember(t, forked, forked.APIKey, "of the copy")
	harness.Remember(t, e, e.APIKey, "of the first")
	for _, one := range []struct {
		e            *client.Engine
		knows, never string
	}{{e, "of the first", "of the copy"}, {forked, "of the copy", "of the first"}} {
		memory := harness.Export(t, one.e, one.e.APIKey)
		if err := memory.Knows("common"); err != nil {
			t.Error(err)
		}
		if err := memory.Knows(one.knows); err != nil {
			t.Error(err)
		}
		if memory.Knows(one.never) == nil {
			t.Errorf("%s knows what only the other engine learnt", one.e.UserID)
		}
	}
	if page, err := c.Snapshots(ctx, "u", client.SnapshotPage{}); err != nil || len(page.Snapshots) != 1 || page.Snapshots[0].Trigger != "fork" {
		t.Errorf("%+v, %v", page, err)
	}
	_, err = c.Fork(ctx, "u", "copy", "")
	harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")

	// The copy is independent of the engine that it came from.
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, forked, forked.APIKey).Knows("common"); err != nil {
		t.Error(err)
	}
	if _, err := c.Snapshot(ctx, "copy", ""); err != nil {
		t.Error(err)
	}
}

// TestErase: after a destroy, the deployment has nothing that decrypts a copy of the store
// that was made before.
func TestErase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1", "ORCH_SNAPSHOT_URL": "file://" + dir})
	c := r.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "a secret of the user")
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil || taken.FrozenMS != 0 {
		t.Fatalf("of a stopped engine: %+v, %v", taken, err)
	}
	if err := harness.InState(t, c, "u", "stopped"); err != nil {
		t.Error(err)
	}
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(copied, "objects", e.EngineID, taken.SnapshotID+".tar.zst.age")
	s := harness.OpenStores(t, harness.Shared)
	identity := s.BrainKey(e.EngineID)
	if err := decrypts(object, identity); err != nil {
		t.Fatalf("with the key of the engine: %v", err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if left := s.BrainKey(e.EngineID); left != "" {
		t.Error("the key is still in Vault")
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left in the store: %v", left)
	}
	rows, _ := harness.AuditLog(t, c, "?action=erase")
	if len(rows) != 1 || rows[0].EngineID != e.EngineID {
		t.Errorf("audit rows: %+v", rows)
	}
}

// TestSchedule: with an interval in its product's policy, an engine that comes to rest gets a
// snapshot, and no call waits for it.
func TestSchedule(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	c := r.Product(t, map[string]any{"snapshot_interval_s": 300, "snapshot_keep": 2})
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	key, taken := e.APIKey, map[string]bool{}
	for round := range 4 {
		harness.Remember(t, e, key, "round")
		if _, err := c.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the stopped engine has a snapshot", func() error {
			page, err := c.Snapshots(ctx, "u", client.SnapshotPage{})
			if err != nil {
				return err
			}
			if len(page.Snapshots) == 0 || taken[page.Snapshots[0].SnapshotID] {
				return fmt.Errorf("there is no new one among %d", len(page.Snapshots))
			}
			if page.Snapshots[0].Trigger != "schedule" {
				t.Errorf("%+v", page.Snapshots[0])
			}
			taken[page.Snapshots[0].SnapshotID] = true
			return nil
		})
		var err error
		if e, err = c.Start(ctx, "u"); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	harness.Eventually(t, "only the newest are kept", func() error {
		page, err := c.Snapshots(ctx, "u", client.SnapshotPage{})
		if err == nil && len(page.Snapshots) != 2 {
			err = fmt.Errorf("%d are left", len(page.Snapshots))
		}
		return err
	})
}

// decrypts returns nil if an identity of age decrypts a file.
func decrypts(path, identity string) error {
	id, err := age.ParseX25519Identity(identity)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := age.Decrypt(f, id)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, plain)
	return err
}

// files lists all files below a directory.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
