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

// The reaper is a second process of the same executable that outlives its parent, however
// the parent ends: it reads from a pipe, and cleans up the stack when the pipe is closed. It
// needs no other executable, as in moby's package reexec.
const reaperEnv = "ORCH_DEVSTACK_REAPER"

// reaperSettle is how long the reaper waits for processes that were just being started when
// the parent died.
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

// reaper is the parent's handle of the reaper.
type reaper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startReaper starts the reaper of a stack. The reaper keeps held open until it exits.
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // signals of the terminal do not reach it
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("the stack's reaper: %w", err)
	}
	return &reaper{cmd: cmd, pipe: pipe}, nil
}

// dismiss ends the reaper of a stack that has been cleaned up. It kills the reaper before it
// closes the pipe, so that the reaper does not clean up again.
func (r *reaper) dismiss() {
	_ = r.cmd.Process.Kill()
	_ = r.pipe.Close()
	_ = r.cmd.Wait()
}

// awaitDeath waits until a killed process has ended. The wait is limited, because another
// process may have got its id.
func awaitDeath(pid int) {
	for deadline := time.Now().Add(killTimeout); !zombie(pid) && time.Now().Before(deadline); {
		time.Sleep(procPoll)
	}
}

// reap waits until the parent has ended, and then cleans up.
func reap(spec string, parent io.Reader) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var id identity
	if err := json.Unmarshal([]byte(spec), &id); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, parent)
	awaitDeath(id.PID) // a dying process closes the pipe before it releases the lock
	// The lock makes the next stack in this directory wait for this reaper. If the next
	// stack was faster, the directory is its own, and only processes are cleaned up here.
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
