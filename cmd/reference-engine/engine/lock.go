package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// ErrBrainHeld means that another process has this brain open.
var ErrBrainHeld = errors.New("the brain is held by another process")

// brainLock is an exclusive flock on a file beside the brain. The kernel releases it when
// the process ends in any way, so it is never stale. The file is never removed, because
// then two processes could lock two files of the same name.
type brainLock struct{ f *os.File }

// lockBrain takes the lock, or returns [ErrBrainHeld] without waiting.
func lockBrain(brain string) (*brainLock, error) {
	path := brain + ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the brain: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the brain: flock %s: %w", path, err)
		}
		holder := make([]byte, 64)
		n, _ := f.ReadAt(holder, 0)
		return nil, fmt.Errorf("%w: %s (%s)", ErrBrainHeld, path, strings.TrimSpace(string(holder[:n])))
	}
	// The content is only a hint for the error above; the lock is the flock.
	host, _ := os.Hostname()
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "pid %d on %.40s\n", os.Getpid(), host), 0)
	}
	return &brainLock{f}, nil
}

// Close releases the lock.
func (l *brainLock) Close() error { return l.f.Close() }
