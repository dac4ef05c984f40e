package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// markerName is the file by which a stack's directory is recognised. It contains the stack's
// identity, and the stack's process holds a lock on it while it lives.
const markerName = ".orch-devstack.json"

// leftoversTimeout limits how long Start waits for the reaper of a killed stack in the same
// directory.
const leftoversTimeout = 20 * time.Second

// identity is what the clean-up of a stack needs to know. It is written into the marker and
// passed to the reaper.
type identity struct {
	ID           string // in the environment of every process of the stack
	Dir          string
	PID          int    // of the process that runs the stack
	Cgroups      string // pattern of the cgroup_parent of its nodes
	DockerSocket string // empty: the docker driver is disabled
	Keep         bool
	KeyFile      string `json:",omitempty"`
	Memory       string `json:",omitempty"` // the directory of the databases, if it is not Dir
}

// stateDir is the stack's directory, locked.
type stateDir struct {
	path   string
	marker *os.File
}

// openState locks and empties dir, after it has cleaned up what a killed stack left. It
// fails if dir contains files but was not created by a stack, or if its stack still runs.
func openState(ctx context.Context, dir string) (*stateDir, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, markerName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		if len(entries) > 0 {
			return nil, fmt.Errorf("%s is not empty and was not created by a stack, so its files are not deleted: empty it or choose another directory", dir)
		}
	}
	marker, err := lockMarker(ctx, path)
	if err != nil {
		return nil, err
	}
	s := &stateDir{path: dir, marker: marker}
	if old, err := readMarker(path); err == nil && old.ID != "" {
		old.Dir = dir // the directory may have been moved since
		if err := cleanUp(old); err != nil {
			s.close()
			return nil, fmt.Errorf("cleaning up what an earlier stack left in %s: %w", dir, err)
		}
	}
	if err := wipe(dir, markerName); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// lockMarker opens and locks the marker. It waits for a reaper that holds the lock, and
// fails at once if a running stack does.
func lockMarker(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, leftoversTimeout)
	defer cancel()
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if errors.Is(err, fs.ErrNotExist) { // a reaper just removed the whole directory
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return nil, fmt.Errorf("state directory: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		lockErr := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if lockErr == nil && samePath(f, path) {
			return f, nil
		}
		_ = f.Close()
		holder, err := readMarker(path)
		if lockErr != nil && err == nil && holder.PID > 0 && !zombie(holder.PID) {
			return nil, fmt.Errorf("a stack is running in %s (process %d): end it first, or choose another directory", filepath.Dir(path), holder.PID)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is still being cleaned up after a killed stack: retry in a moment", filepath.Dir(path))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// samePath reports whether f is still the file at path. A reaper may have removed the file
// between open and lock.
func samePath(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func readMarker(path string) (identity, error) {
	var id identity
	text, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	return id, json.Unmarshal(text, &id)
}

// write writes the identity of the running stack into the marker.
func (s *stateDir) write(id identity) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := s.marker.Truncate(0); err != nil {
		return err
	}
	_, err = s.marker.WriteAt(append(text, '\n'), 0)
	return err
}

// remove deletes the directory. It deletes the marker last and under the lock.
func (s *stateDir) remove() error {
	if err := wipe(s.path, markerName); err != nil {
		return err
	}
	if err := os.Remove(s.marker.Name()); err != nil {
		return err
	}
	return os.Remove(s.path)
}

// removeKeyFile deletes the file with the stack's keys.
func (s *stateDir) removeKeyFile(id identity) error {
	if id.KeyFile == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(s.path, filepath.Base(id.KeyFile))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *stateDir) close() { _ = s.marker.Close() }

// wipe deletes everything in dir except the entry keep. If there is a mount below dir, it
// deletes nothing and fails, because the mount may contain the files of others.
func wipe(dir, keep string) error {
	if mounts := mountsUnder(dir); len(mounts) > 0 {
		return fmt.Errorf("%s is not emptied because there are mounts below it; unmount them first: %s", dir, strings.Join(mounts, ", "))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("wiping the state directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == keep {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("wiping the state directory: %w", err)
		}
	}
	return nil
}
