package brains

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestDrills: the first snapshot of a product is restored into a volume of its own, checked
// and removed, while the engine goes on.
func TestDrills(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	vars := b.vars("ORCH_DRILLS_PER_DAY=1", "ORCH_CONSUL_PREFIX=drills/")
	r := harness.StartService(t, harness.Shared, vars)
	s := harness.OpenStores(t, harness.Shared)

	// noDrillLeft waits until an engine has no drill and no volume of one.
	noDrillLeft := func(t *testing.T, engineID string) {
		t.Helper()
		harness.Eventually(t, "no volume of a drill is left", func() error {
			volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: "engine-" + engineID + ".d"})
			if err == nil && len(volumes) > 0 {
				err = fmt.Errorf("%d are left", len(volumes))
			}
			return err
		})
	}
	// drilled waits for a result of a drill of a product, and returns its status.
	drilled := func(t *testing.T, c *client.Client, failed int) (st *client.FleetStatus) {
		t.Helper()
		harness.Eventually(t, fmt.Sprintf("a drill has a result, and %d have failed", failed), func() (err error) {
			st, err = c.Status(t.Context())
			if err == nil && (st.Snapshots.FailedDrills != failed || failed == 0 && st.Snapshots.DrilledAt.IsZero()) {
				err = fmt.Errorf("%+v", st.Snapshots)
			}
			return err
		})
		return st
	}
	// audited waits for the last audit row of a drill.
	audited := func(t *testing.T, c *client.Client, outcome string) map[string]any {
		t.Helper()
		var metadata map[string]any
		harness.Eventually(t, "the drill is in the audit log", func() error {
			rows, _ := harness.AuditLog(t, c, "?action=drill")
			if len(rows) == 0 || rows[0].Outcome != outcome {
				return fmt.Errorf("%+v", rows)
			}
			metadata = rows[0].Metadata
			return nil
		})
		return metadata
	}
	snapshot := func(t *testing.T, c *client.Client) string {
		t.Helper()
		taken, err := c.Snapshot(t.Context(), "u", "")
		if err != nil {
			t.Fatal(err)
		}
		return taken.SnapshotID
	}

	t.Run("Passes", func(t *testing.T) {
		t.Parallel()
		c := r.Product(t, map[string]any{"snapshot_interval_s": 86400})
		e := harness.Provision(t, c, "u", "")
		harness.Remember(t, e, e.APIKey, "kept")
		id := snapshot(t, c)
		st := drilled(t, c, 0)
		if st.Health != "ok" || st.Snapshots.RecoveryTimeMS == 0 || st.Snapshots.RecoveryPointS > 3600 || st.Snapshots.Overdue+st.Snapshots.Without+st.Snapshots.DrillsOverdue > 0 || st.Snapshots.Advice != "" {
			t.Errorf("%+v", st)
		}
		if m := audited(t, c, "ok"); m["snapshot_id"] != id || m["databases"] != 1.0 {
			t.Errorf("audit row: %+v", m)
		}
		noDrillLeft(t, e.EngineID)
		unharmed(t, c, e, "kept")
		// Without its snapshot it is not protected any more.
		if err := c.DeleteSnapshot(t.Context(), "u", id); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the engine counts as one without a snapshot", func() error {
			st, err := c.Status(t.Context())
			if err == nil && st.Snapshots.Without != 1 {
				err = fmt.Errorf("%+v", st.Snapshots)
			}
			return err
		})
	})

	t.Run("Altered", func(t *testing.T) {
		t.Parallel()
		c := r.Product(t, nil)
		e := harness.Provision(t, c, "u", "")
		harness.Remember(t, e, e.APIKey, "kept")
		h := b.hold(t, e.EngineID, isFetch, nil)
		id := snapshot(t, c)
		h.await(t)
		edit(t, b.object(e.EngineID, id), func(text []byte) []byte {
			text[len(text)/2] ^= 1
			return text
		})
		h.release()
		st := drilled(t, c, 1)
		if st.Health != "degraded" || !strings.Contains(st.Snapshots.Advice, "Take a new snapshot") || !strings.Contains(st.Snapshots.Advice, e.EngineID) {
			t.Errorf("%+v", st)
		}
		if m := audited(t, c, "SNAPSHOT_CORRUPT"); m["snapshot_id"] != id || m["failure"] == "" {
			t.Errorf("audit row: %+v", m)
		}
		if text := r.Logs.String(); !strings.Contains(text, "[ERROR]") || !strings.Contains(text, "a restore drill has failed") {
			t.Error("nothing in the log")
		}
		admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
		if whole, err := admin.Whole(t.Context()); err != nil || whole.Snapshots.FailedDrills == 0 || whole.Snapshots.Advice == "" {
			t.Errorf("%+v, %v", whole, err)
		}
		settled(t, c, "u")
		snapshot(t, c)
		if st := drilled(t, c, 0); st.Health != "ok" || st.Snapshots.Advice != "" {
			t.Errorf("after a new snapshot: %+v", st)
		}
		noDrillLeft(t, e.EngineID)
		unharmed(t, c, e, "kept")
	})

	t.Run("FormerKey", func(t *testing.T) {
		t.Parallel()
		c := r.Product(t, nil)
		e := harness.Provision(t, c, "u", "")
		harness.Remember(t, e, e.APIKey, "kept")
		h := b.hold(t, e.EngineID, isManifest, nil)
		taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(t.Context(), "u", "") })
		h.await(t)
		replaceKey(t, s, e.EngineID)
		h.end(t, taking)
		if st := drilled(t, c, 1); !strings.Contains(st.Snapshots.Advice, "former key") {
			t.Errorf("%+v", st)
		}
		audited(t, c, "SNAPSHOT_NOT_FOUND")
		settled(t, c, "u")
		snapshot(t, c)
		drilled(t, c, 0)
		noDrillLeft(t, e.EngineID)
		unharmed(t, c, e, "kept")
	})

	t.Run("DamagedInside", func(t *testing.T) {
		t.Parallel()
		c := r.Product(t, nil)
		e := harness.Provision(t, c, "u", "")
		var path string
		rows, err := s.Engines("drills/")
		for _, row := range rows {
			if row.EngineID == e.EngineID {
				path = row.VolumePath
			}
		}
		if err != nil || path == "" {
			t.Fatalf("no volume: %v", err)
		}
		damaged := append([]byte("SQLite format 3\x00"), []byte(strings.Repeat("damaged ", 1024))...)
		if err := os.WriteFile(filepath.Join(path, "a secret name.db"), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		snapshot(t, c)
		st := drilled(t, c, 1)
		if st.Health != "degraded" || !strings.Contains(st.Snapshots.Advice, "SQLite") || strings.Contains(st.Snapshots.Advice, "secret name") {
			t.Errorf("%+v", st)
		}
		if m := audited(t, c, "SNAPSHOT_CORRUPT"); strings.Contains(fmt.Sprint(m), "secret name") {
			t.Errorf("audit row: %+v", m)
		}
		noDrillLeft(t, e.EngineID)
		unharmed(t, c, e)
	})

	// What anybody asks for comes first.
	for name, call := range map[string]func(t *testing.T, c *client.Client) error{
		"Stop": func(t *testing.T, c *client.Client) error {
			if err := harness.ErrOf(c.Stop(t.Context(), "u")); err != nil {
				return err
			}
			return harness.ErrOf(c.Start(t.Context(), "u"))
		},
		"KeepAwake": func(t *testing.T, c *client.Client) error {
			return harness.ErrOf(c.KeepAwake(t.Context(), "u", time.Minute))
		},
		"Destroy": func(t *testing.T, c *client.Client) error {
			return harness.ErrOf(c.Destroy(t.Context(), "u"))
		},
	} {
		t.Run("GivesWayTo"+name, func(t *testing.T) {
			t.Parallel()
			c := r.Product(t, nil)
			e, err := c.Provision(t.Context(), "u", "")
			if err != nil {
				t.Fatal(err)
			}
			h := b.hold(t, e.EngineID, isFetch, nil)
			snapshot(t, c)
			h.await(t)
			if a, err := harness.Admit(t.Context(), c, "u", false, false); err != nil || !a.Admitted {
				t.Errorf("admitted during a drill: %+v, %v", a, err)
			}
			if now, err := c.Engine(t.Context(), "u"); err != nil || now.Operation == nil || now.Operation.Kind != string(engine.OpDrill) || now.Status != "running" {
				t.Errorf("%+v, %v", now, err)
			}
			if err := call(t, c); err != nil {
				t.Errorf("during a drill: %v", err)
			}
			audited(t, c, "ENGINE_BUSY")
			noDrillLeft(t, e.EngineID)
			if name == "Destroy" {
				harness.Eventually(t, "nothing is left", func() error {
					if left := s.Traces(e.EngineID); len(left) > 0 {
						return fmt.Errorf("%v", left)
					}
					return nil
				})
			} else if err := harness.ErrOf(c.Destroy(t.Context(), "u")); err != nil {
				t.Error(err)
			}
		})
	}
}
