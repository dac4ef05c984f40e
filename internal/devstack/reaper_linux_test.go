package devstack

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// If the parent is killed, the reaper cleans up. If the reaper is killed, too, the next stack
// in the same directory cleans up.
func TestParentKilled(t *testing.T) {
	t.Run("Reaper", func(t *testing.T) {
		cmd, report := startChild(t)
		cgroups := cgroupDirs(report.Identity)
		killChild(t, cmd)
		eventually(t, func() string { return leftovers(report.Identity) })
		wantGone(t, cgroups)
	})
	t.Run("NextStart", func(t *testing.T) {
		cmd, report := startChild(t)
		id := report.Identity
		cgroups := cgroupDirs(id)
		pid := reaperPID(id)
		if pid == 0 {
			t.Fatal("the child has no reaper")
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killChild(t, cmd)
		if !alive(report.TaskPID) {
			t.Error("the task is gone although nobody cleaned up: the test proves nothing")
		}
		state, err := openState(t.Context(), id.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer state.close()
		if err := state.remove(); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(id); left != "" {
			t.Errorf("left behind: %s", left)
		}
		wantGone(t, cgroups)
	})
}

// wantGone fails for each directory that still exists. The cgroups of tasks must be listed
// before, because they can be found only while the stack's directory exists.
func wantGone(t *testing.T, dirs []string) {
	t.Helper()
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left behind: %s", dir)
		}
	}
}

// The kernel closes the files of a dying process one after another, so the reaper may read
// the end of the pipe while the lock is still held.
func TestReaperOutlivesLock(t *testing.T) {
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Fatal("flock is missing: install util-linux")
	}
	dir := filepath.Join(t.TempDir(), "stack")
	state, err := openState(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	marker := state.marker.Name()
	state.close()
	// It reports that it has the lock, and keeps it for some time after it closed the pipe.
	dying := exec.Command(flock, "--no-fork", marker, "sh", "-c", "echo locked; exec sleep 0.5")
	out, err := dying.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dying.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dying.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	id := identity{ID: "dying", Dir: dir, PID: dying.Process.Pid}
	text, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, text, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := startReaper(id, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.pipe.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if left := leftovers(id); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func startChild(t *testing.T) (*exec.Cmd, childReport) {
	t.Helper()
	dir, err := os.MkdirTemp("", "orch-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+filepath.Clean(dir))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var report childReport
	if err := json.NewDecoder(out).Decode(&report); err != nil {
		_ = cmd.Wait()
		t.Fatalf("the child did not report: %v", err)
	}
	return cmd, report
}

func killChild(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // reports the signal
}
