package faults

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/testpg"
)

// engineProcess returns the state of the one process of an engine.
func engineProcess(engineID string) (string, error) {
	var states []string
	for _, task := range harness.Shared.Tasks() {
		if task.JobID == engine.JobID(engineID) {
			states = append(states, harness.ProcessState(task.PID))
		}
	}
	if len(states) != 1 {
		return "", fmt.Errorf("it has the processes %v", states)
	}
	return states[0], nil
}

// begun returns the row of laneUser's engine, which has an operation.
func begun(t *testing.T, s *harness.Stores, prefix string) *engine.Row {
	t.Helper()
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 || rows[0].Op == nil {
		t.Fatalf("while it is paused: %+v, %v", rows, err)
	}
	return rows[0]
}

// TestPausedInCopy pauses a replica while it keeps an engine frozen for a copy. Another
// replica lets the engine go on, and makes another copy. When the first replica resumes in
// the middle of that copy, it leaves the engine frozen until the other one has its copy.
func TestPausedInCopy(t *testing.T) {
	testpg.Need(t)
	t.Parallel()
	const prefix, point = "paused-copy/", "pause snapshot/copy/frozen"
	database, s, ctx := harness.Postgres.Database(t), harness.OpenStores(t, harness.Shared), t.Context()
	a := harness.StartFaulty(t, prefix, database, point)
	product, err := a.RegisterProduct(ctx, "paused", "Paused", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	a.PlatformKey = product.PlatformAPIKey
	e, err := a.Provision(ctx, laneUser, "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	answered := make(chan error, 1)
	go func() { answered <- harness.ErrOf(a.Snapshot(ctx, laneUser, "")) }()
	a.AwaitPause(t)
	cut := begun(t, s, prefix)
	if state, err := engineProcess(e.EngineID); state != "T" {
		t.Fatalf("the engine is not frozen: %s, %v", state, err)
	}

	s.EndSession(prefix, cut.Op.Owner)
	b := harness.StartFaulty(t, prefix, database, point)
	b.PlatformKey = product.PlatformAPIKey
	harness.Eventually(t, "the engine goes on before anything else is done", func() error {
		if state, err := engineProcess(e.EngineID); err != nil || state == "T" {
			return fmt.Errorf("it is in state %s, %w", state, err)
		}
		return nil
	})
	b.AwaitPause(t)
	second := begun(t, s, prefix)
	if second.Op.Attempt <= cut.Op.Attempt {
		t.Errorf("the copy of attempt %d is used, which an engine may have changed", cut.Op.Attempt)
	}
	a.Signal(t, syscall.SIGCONT)
	harness.Eventually(t, "the first replica has a session again", func() error {
		if ids := replicas(s, prefix); len(ids) != 2 {
			return fmt.Errorf("the replicas are %v", ids)
		}
		return a.Ready(ctx)
	})
	state, err := engineProcess(e.EngineID)
	if now := begun(t, s, prefix); now.Op.Owner == second.Op.Owner && state != "T" {
		t.Errorf("the engine is in state %s during the copy, %v", state, err)
	}
	b.Signal(t, syscall.SIGCONT)
	harness.WantCode(t, <-answered, 503, "BACKEND_UNAVAILABLE")
	harness.Eventually(t, "nothing is left", func() error {
		if err := s.Disagreement(prefix, e.EngineID[:6]); err != nil {
			return err
		}
		if state, err := engineProcess(e.EngineID); err != nil || state == "T" {
			return fmt.Errorf("the engine is in state %s, %w", state, err)
		}
		return leftInStore(snapshotsOf(t, prefix), s, prefix)
	})
	page, err := b.Snapshots(ctx, laneUser, client.SnapshotPage{})
	if err != nil || len(page.Snapshots) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	restored, err := b.Restore(ctx, laneUser, page.Snapshots[0].SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("kept"); err != nil {
		t.Error(err)
	}
	if _, err := b.Destroy(ctx, laneUser); err != nil {
		t.Error(err)
	}
}

// snapshotsOf returns the directory of a deployment's snapshots.
func snapshotsOf(t *testing.T, prefix string) string {
	t.Helper()
	at, err := url.Parse(harness.SnapshotURL(t, harness.Shared, prefix))
	if err != nil {
		t.Fatal(err)
	}
	return at.Path
}

// TestDestroyDuringSnapshots destroys an engine while a replica is paused in a long step of
// a snapshot or a restore. When that replica resumes, it leaves nothing either.
func TestDestroyDuringSnapshots(t *testing.T) {
	testpg.Need(t)
	t.Parallel()
	snapshot := func(ctx context.Context, c *client.Client) error { return harness.ErrOf(c.Snapshot(ctx, laneUser, "")) }
	restore := func(ctx context.Context, c *client.Client) error { return harness.ErrOf(c.Restore(ctx, laneUser, "")) }
	for point, cut := range map[string]func(context.Context, *client.Client) error{
		"snapshot/worker/fenced":   snapshot, // it registers a worker
		"snapshot/copy/frozen":     snapshot,
		"snapshot/send/before":     snapshot,
		"snapshot/store/fenced":    snapshot, // it writes a manifest
		"restore/fetch/fenced":     restore,
		"restore/keep-send/before": restore,
		"restore/register/fenced":  restore,
		"restore/release/fenced":   restore,
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
			prefix, database := "cut-"+strings.ReplaceAll(point, "/", "-")+"/", harness.Postgres.Database(t)
			first := harness.StartFaulty(t, prefix, database, "")
			product, err := first.RegisterProduct(ctx, "cut", "Cut", harness.PolicyOf(t, harness.AnyImage))
			if err != nil {
				t.Fatal(err)
			}
			first.PlatformKey = product.PlatformAPIKey
			e, err := first.Provision(ctx, laneUser, "")
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(point, "restore/") {
				if _, err := first.Snapshot(ctx, laneUser, ""); err != nil {
					t.Fatal(err)
				}
			}
			a := harness.StartFaulty(t, prefix, database, "pause "+point)
			a.PlatformKey = product.PlatformAPIKey
			answered := make(chan error, 1)
			go func() { answered <- cut(ctx, a.Client) }()
			a.AwaitPause(t)
			s.EndSession(prefix, begun(t, s, prefix).Op.Owner)
			if _, err := first.Destroy(ctx, laneUser); err != nil {
				t.Fatal(err)
			}
			a.Signal(t, syscall.SIGCONT)
			if err := <-answered; err == nil {
				t.Error("the caller of the interrupted operation got no error")
			}
			harness.Eventually(t, "nothing is left", func() error {
				if a.Log.Count("op=", "by=") == 0 {
					return errors.New("the paused replica does not know yet that it was superseded")
				}
				if left := s.Traces(e.EngineID); len(left) > 0 {
					return fmt.Errorf("left: %v", left)
				}
				if s.BrainKey(e.EngineID) != "" {
					return errors.New("the key of its snapshots is left")
				}
				if err := s.Disagreement(prefix, e.EngineID[:6]); err != nil {
					return err
				}
				return leftInStore(snapshotsOf(t, prefix), s, prefix)
			})
			for _, task := range harness.Shared.Tasks() {
				if strings.Contains(task.JobID, e.EngineID) {
					t.Errorf("the process of %s is left", task.JobID)
				}
			}
		})
	}
}
