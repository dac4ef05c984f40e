package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestHandsInSnapshots does manually, during a snapshot or a restore, what breaks
// it. The caller gets an error, and the engine has the brain and the key that it had.
func TestHandsInSnapshots(t *testing.T) {
	t.Parallel()
	snapshot := func(ctx context.Context, c *client.Client) error { return harness.ErrOf(c.Snapshot(ctx, laneUser, "")) }
	restore := func(ctx context.Context, c *client.Client) error { return harness.ErrOf(c.Restore(ctx, laneUser, "")) }
	for name, tc := range map[string]struct {
		point string
		cut   func(context.Context, *client.Client) error
		hand  func(*testing.T, *harness.Stores, *engine.Row)
		codes string // one of them
	}{
		"TheNewVolumeIsDeleted": {"restore/switch/before", restore, func(t *testing.T, s *harness.Stores, row *engine.Row) {
			if _, _, err := s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: row.Op.Restoring.Target.VolumeID}, nil); err != nil {
				t.Fatal(err)
			}
		}, "CAPACITY_EXHAUSTED BACKEND_ERROR BOOT_TIMEOUT ENGINE_BOOT_FAILED SNAPSHOT_FAILED"},
		"TheKeyIsDestroyed": {"restore/fetch/before", restore, func(t *testing.T, s *harness.Stores, row *engine.Row) {
			if _, err := s.Vault.Logical().Delete(s.MountWith(row.EngineID) + "/metadata/brains/" + row.EngineID); err != nil {
				t.Fatal(err)
			}
		}, "SNAPSHOT_NOT_FOUND"},
		"TheWorkerIsPurged": {"snapshot/copy/before", snapshot, func(t *testing.T, s *harness.Stores, row *engine.Row) {
			jobs, _, err := s.Nomad.Jobs().PrefixList("orch-brain-" + row.EngineID)
			if err != nil || len(jobs) != 1 {
				t.Fatalf("%d workers, %v", len(jobs), err)
			}
			if _, _, err := s.Nomad.Jobs().Deregister(jobs[0].ID, true, nil); err != nil {
				t.Fatal(err)
			}
		}, "SNAPSHOT_FAILED"},
		"TheEngineIsKilled": {"snapshot/copy/frozen", snapshot, func(t *testing.T, _ *harness.Stores, row *engine.Row) {
			for _, task := range harness.Shared.Tasks() {
				if task.JobID == engine.JobID(row.EngineID) {
					if err := syscall.Kill(task.PID, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			harness.Eventually(t, "Nomad has started the engine again", func() error {
				state, err := engineProcess(row.EngineID)
				if err == nil && (state == "T" || state == "Z") {
					err = errors.New("it is in state " + state)
				}
				return err
			})
		}, "SNAPSHOT_FAILED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, s, prefix := t.Context(), harness.OpenStores(t, harness.Shared), "hands-"+strings.ToLower(name)+"/"
			database := "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
			p := harness.StartFaulty(t, prefix, database, "pause "+tc.point)
			product, err := p.RegisterProduct(ctx, "hands", "Hands", harness.PolicyOf(t, harness.AnyImage))
			if err != nil {
				t.Fatal(err)
			}
			p.PlatformKey = product.PlatformAPIKey
			e, err := p.Provision(ctx, laneUser, "")
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(tc.point, "restore/") {
				if _, err := p.Snapshot(ctx, laneUser, ""); err != nil {
					t.Fatal(err)
				}
			}
			harness.Remember(t, e, e.APIKey, "kept")
			answered := make(chan error, 1)
			go func() { answered <- tc.cut(ctx, p.Client) }()
			p.AwaitPause(t)
			tc.hand(t, s, begun(t, s, prefix))
			p.Signal(t, syscall.SIGCONT)
			err = <-answered
			var said *client.Error
			if !errors.As(err, &said) || !strings.Contains(tc.codes, string(said.Code)) {
				t.Errorf("the caller got %v, want one of %s", err, tc.codes)
			}
			t.Logf("the caller got %v", err)
			var now *client.Engine
			harness.Eventually(t, "the engine runs as before", func() (err error) {
				if err := s.Disagreement(prefix, e.EngineID[:6]); err != nil {
					return err
				}
				now, err = p.Engine(ctx, laneUser)
				if err == nil && now.Status == "failed" {
					now, err = p.Start(ctx, laneUser)
				}
				if err != nil || now.Status != "running" {
					return fmt.Errorf("%+v, %w", now, err)
				}
				var memory harness.Memory // the end of its process may not be noticed yet
				if status, err := harness.EngineCall(ctx, now, now.APIKey, http.MethodGet, "/memory/export", nil, &memory); err != nil || status != http.StatusOK {
					return fmt.Errorf("export: status %d, %w", status, err)
				}
				return errors.Join(memory.Knows("kept"), leftInStore(snapshotsOf(t, prefix), s, prefix))
			})
			if now.APIKey != e.APIKey {
				t.Error("it has another key")
			}
			harness.Eventually(t, "the next snapshot is taken", func() error {
				_, err := p.Snapshot(ctx, laneUser, "")
				if err != nil && !errors.Is(err, client.ErrEngineBusy) { // the service may just notice that it was killed
					t.Fatal(err)
				}
				return err
			})
			if _, err := p.Destroy(ctx, laneUser); err != nil {
				t.Error(err)
			}
		})
	}
}
