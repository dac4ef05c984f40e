package devstack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// The reaper is a second process of the same executable that outlives its
// parent, in whatever way that ends: it holds a pipe, and when the pipe closes it
// cleans the stack up. Re-executing ourselves needs no further file, as in moby's
// reexec.
const reaperEnv = "ORCH_DEVSTACK_REAPER"

// reaperSettle is how long the reaper looks for processes that were just being
// started when the parent died.
const reaperSettle = 300 * time.Millisecond

func init() {
	spec := os.Getenv(reaperEnv)
	if spec == "" {
		return
	}
	if err := reap(spec, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "orch devstack reaper:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// reaper is the parent's end.
type reaper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startReaper starts the reaper of a stack. held stays open in it until it is done.
func startReaper(id identity, held *os.File) (*reaper, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("the stack's reaper: %w", err)
	}
	spec, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Args = []string{filepath.Base(exe), "devstack-reaper", id.Dir} // for ps
	cmd.Env = append(agentEnv(), reaperEnv+"="+string(spec))
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{held}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of the terminal's reach
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("the stack's reaper: %w", err)
	}
	return &reaper{cmd: cmd, pipe: pipe}, nil
}

// dismiss ends the reaper of a stack that is cleaned up. Killing it before the
// pipe closes leaves it no chance to look for work.
func (r *reaper) dismiss() {
	_ = r.cmd.Process.Kill()
	_ = r.pipe.Close()
	_ = r.cmd.Wait()
}

// awaitDeath waits until a process that was killed is gone, or a zombie. Bounded,
// since its id may belong to another process by now.
func awaitDeath(pid int) {
	for deadline := time.Now().Add(killTimeout); !zombie(pid) && time.Now().Before(deadline); {
		time.Sleep(procPoll)
	}
}

// reap is the reaper's life: it waits until the parent is gone, then cleans up.
func reap(spec string, parent io.Reader) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var id identity
	if err := json.Unmarshal([]byte(spec), &id); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, parent)
	awaitDeath(id.PID) // it closes the pipe before it gives up the lock
	// The lock shows a next stack in this directory that it has to wait for us. Is
	// that one faster, the directory is its own: only processes are left to do.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	path := filepath.Join(id.Dir, markerName)
	_, lockErr := os.Lstat(path)
	var marker *os.File
	if lockErr == nil {
		marker, lockErr = lockMarker(ctx, path)
	}
	err := cleanUp(id)
	time.Sleep(reaperSettle)
	if again := cleanUp(id); again == nil {
		err = nil
	}
	if lockErr != nil {
		return err
	}
	state := &stateDir{path: id.Dir, marker: marker}
	defer state.close()
	if now, readErr := readMarker(path); readErr != nil || now.ID != id.ID || err != nil {
		return err
	}
	if id.Keep {
		return state.removeKeyFile(id)
	}
	return state.remove()
}
