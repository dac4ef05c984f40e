package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/scheduler"
)

// forkUser gets the forks of laneUser's engine.
const forkUser = "fork"

// leftOut says that no lane visits a point. A snapshot, a restore and a fork have more steps
// than all other kinds together, and each point costs seconds, so of a step only the moment
// is visited at which it has acted and the row is not written: another process repeats it.
// "saved", "before" and "fenced", where another process begins a step that nobody has begun,
// are like the "done" of that step, with less done before. They are visited where the step
// before it, or it, freezes or ends a process, changes the brain or the key, or is the last.
func leftOut(point string) bool {
	parts := strings.Split(point, "/")
	if len(parts) != 3 || !ofSnapshots(point) {
		return false
	}
	if parts[0] == "restore" && slices.Contains([]string{"target", "target-ready", "clean", "keep-upload", "keep-worker", "keep-send"}, parts[1]) {
		return true // a name is chosen, or as in a snapshot
	}
	if parts[0] == "move" && !strings.HasPrefix(parts[1], "undo-") && !slices.Contains([]string{"scale-down", "keep-store", "pass", "fetch", "switch", "register", "release", "another-port"}, parts[1]) {
		return true // as in a restore
	}
	if parts[0] == "drill" && slices.Contains([]string{"target", "clean", "undo-worker"}, parts[1]) {
		return true // a name is chosen, or as in a restore
	}
	switch parts[2] {
	case "done", "frozen":
		return false
	case "saved":
		return !slices.Contains([]string{"copy", "switch", "register", "fork-volume"}, parts[1]) && !scheduler.LastStep(point)
	case "fenced":
		return !slices.Contains([]string{"copy", "scale-down", "new-key", "register"}, parts[1])
	}
	return true
}

// ofSnapshots reports whether a point is in a snapshot, a restore, a fork or a drill.
func ofSnapshots(point string) bool {
	parts := strings.Split(point, "/")
	if parts[0] == "provision" {
		return slices.Contains([]string{"fork-snapshot", "fork-volume", "fetch", "clean", "fork-ready"}, parts[1])
	}
	return slices.Contains([]string{"snapshot", "restore", "move", "drill"}, parts[0])
}

var (
	snapshotIt = keyed("snapshot", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Snapshot(l.t.Context(), laneUser, "", key))
	})
	restoreIt = keyed("restore", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Restore(l.t.Context(), laneUser, l.snapshotID, key))
	})
	forkIt = keyed("fork", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Fork(l.t.Context(), laneUser, forkUser, "", key))
	})
)

// forkAndDrop repeats a fork, and destroys the new engine if it has the brain.
func forkAndDrop(l *lane, point string) error {
	if err := forkIt(l, point); err != nil {
		return err
	}
	e, err := l.p.Engine(l.t.Context(), forkUser)
	if err != nil {
		return err
	}
	if err := harness.Export(l.t, e, e.APIKey).Knows("kept"); err != nil {
		return err
	}
	return harness.ErrOf(l.p.Destroy(l.t.Context(), forkUser))
}

// undoneSnapshot writes a failed snapshot into the engine's row, with everything that one can
// have made: a frozen process, an order and an upload with a part.
func undoneSnapshot(l *lane, _ string) error {
	row := l.row()
	order := nomad.NewVariable("nomad/jobs/orch-brain-" + row.EngineID + "-injected-" + row.EngineID[:1] + "-1")
	order.Items = nomad.VariableItems{"order": "{}"}
	if _, _, err := l.s.Nomad.Variables().Create(order, nil); err != nil {
		return err
	}
	const upload = "11111111-1111-4111-8111-111111111111"
	if err := os.MkdirAll(filepath.Join(snapshotsOf(l.t, l.prefix), "uploads", upload), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(snapshotsOf(l.t, l.prefix), "uploads", upload, "00001"), []byte("part"), 0o600); err != nil {
		return err
	}
	if err := l.s.Nomad.Allocations().Signal(&nomad.Allocation{ID: row.AllocID}, nil, "", "SIGSTOP"); err != nil {
		return err
	}
	return l.inject(engine.Operation{
		Kind: engine.OpSnapshot, Step: "undo-copy", Undo: "SNAPSHOT_FAILED", From: engine.Running, Attempt: 1, Worker: row.NodeID,
		Taking: &engine.Taking{SnapshotID: "20260101t000000z-aaaaaaaaaaaa", Trigger: engine.TriggerCall, UploadID: upload, AllocID: row.AllocID, Freezing: true},
	}, engine.Running)
}

// moveIt begins to move the engine to another volume on the same node, the only one.
func moveIt(l *lane, _ string) error {
	row := l.row()
	former := row.Place()
	to := engine.Place{NodeID: row.NodeID, VolumeName: row.FreshRestoreName()}
	return l.inject(engine.Operation{
		Kind: engine.OpMove, Step: "target-volume", From: engine.Running,
		Restoring: &engine.Restoring{EngineID: row.EngineID, Former: &former, Target: to},
	}, engine.Running)
}

// undoneMove writes a failed move into the engine's row, which had ended the process, and had
// not made its volume yet.
func undoneMove(l *lane, _ string) error {
	row := l.row()
	scale(l.s, row.EngineID, 0)
	former := row.Place()
	to := engine.Place{NodeID: row.NodeID, VolumeName: row.FreshRestoreName()}
	return l.inject(engine.Operation{
		Kind: engine.OpMove, Step: "undo-register", Undo: "CAPACITY_EXHAUSTED", From: engine.Running,
		Restoring: &engine.Restoring{EngineID: row.EngineID, Former: &former, Target: to, Ended: true},
	}, engine.Running)
}

// drillIt begins a drill of a snapshot, and undoneDrill one that has failed.
func drillIt(l *lane, _ string) error {
	return l.injectDrill(engine.Operation{Step: scheduler.FirstStep(engine.OpDrill)})
}

func undoneDrill(l *lane, _ string) error {
	return l.injectDrill(engine.Operation{Step: "undo-worker", Undo: "SNAPSHOT_FAILED"})
}

func (l *lane) injectDrill(op engine.Operation) error {
	if l.snapshotID == "" {
		taken, err := l.p.Snapshot(l.t.Context(), laneUser, "")
		if err != nil {
			return err
		}
		l.snapshotID = taken.SnapshotID
	}
	row := l.row()
	op.Kind, op.From, op.Restoring = engine.OpDrill, engine.Running, &engine.Restoring{EngineID: row.EngineID, SnapshotID: l.snapshotID}
	if op.Undo != "" {
		op.Restoring.Target = engine.Place{NodeID: row.NodeID, VolumeName: row.FreshDrillName()}
		v := &nomad.HostVolume{Namespace: harness.Shared.Namespace, Name: op.Restoring.Target.VolumeName, NodeID: row.NodeID, PluginID: "mkdir"}
		v.RequestedCapabilities = []*nomad.HostVolumeCapability{{AttachmentMode: nomad.HostVolumeAttachmentModeFilesystem, AccessMode: nomad.HostVolumeAccessModeSingleNodeSingleWriter}}
		if _, _, err := l.s.Nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: v}, nil); err != nil {
			return err
		}
	}
	return l.inject(op, engine.Running)
}

// takeOne takes a snapshot.
func (l *lane) takeOne() {
	l.t.Helper()
	if _, err := l.p.Snapshot(l.t.Context(), laneUser, ""); err != nil {
		l.t.Fatal(err)
	}
}

// learnMore makes sure that there is a snapshot, and teaches the engine something after it.
func (l *lane) learnMore(point string) {
	l.t.Helper()
	if l.snapshotID == "" {
		taken, err := l.p.Snapshot(l.t.Context(), laneUser, "")
		if err != nil {
			l.t.Fatal(err)
		}
		l.snapshotID = taken.SnapshotID
	}
	e, err := l.p.Engine(l.t.Context(), laneUser)
	if err != nil {
		l.t.Fatal(err)
	}
	l.since = "after the snapshot, before " + point
	harness.Remember(l.t, e, e.APIKey, l.since)
	l.key = e.APIKey
}

// wantOneBrain checks, after a restore, that the engine has either the brain and the key from
// before, or those of the snapshot and a new key.
func (l *lane) wantOneBrain(point string, brain harness.Memory, key string) {
	l.t.Helper()
	if l.since == "" {
		return
	}
	switch before := brain.Knows(l.since) == nil; {
	case before != (key == l.key):
		l.t.Errorf("%s: it has the brain from before: %t, and the key from before: %t", point, before, key == l.key)
	case !before:
		l.since = ""
	}
}

// wantNothingLeft waits until snapshots have left nothing (jobs, orders and volumes are part
// of the agreement): no process is frozen, and the store has nothing incomplete, or of an
// engine that is gone. An upload without parts that a crash left is not known to anybody, and
// is swept after a day.
func (l *lane) wantNothingLeft(point string) {
	l.t.Helper()
	if l.docker {
		return // sleeping engines are frozen
	}
	harness.Eventually(l.t, "nothing is left after "+point, func() error {
		for _, task := range harness.Shared.Tasks() {
			if l.engineID != "" && task.JobID == engine.JobID(l.engineID) && harness.ProcessState(task.PID) == "T" {
				return fmt.Errorf("the engine's process %d is frozen", task.PID)
			}
		}
		return leftInStore(snapshotsOf(l.t, l.prefix), l.s, l.prefix)
	})
}

// leftInStore returns an error about what is incomplete in a directory of snapshots, or of
// no engine.
func leftInStore(dir string, s *harness.Stores, prefix string) error {
	rows, err := s.Engines(prefix)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, row := range rows {
		ids[row.EngineID] = true
	}
	for _, pattern := range []string{"uploads/*/*", "objects/*/*", "manifests/*/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			rel, _ := filepath.Rel(dir, path)
			parts := strings.Split(rel, "/")
			id, _, _ := strings.Cut(parts[2], ".")
			if parts[0] == "uploads" || !ids[parts[1]] {
				return fmt.Errorf("%s is left", rel)
			}
			if _, err := os.Stat(filepath.Join(dir, "manifests", parts[1], id+".json")); err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(dir, "objects", parts[1], id+".tar.zst.age")); err != nil {
				return err
			}
		}
	}
	return nil
}
