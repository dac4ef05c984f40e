package brains

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestNodeDiskFull: a node has no room for the copy of a brain, or for the brain that is
// restored. The caller learns that, the engine goes on with its brain and its key, and
// everything works as soon as there is room.
func TestNodeDiskFull(t *testing.T) {
	t.Parallel()
	const size, left = 40 << 20, 20 << 20
	disk := smallDisk(t, 256<<20)
	stack := ownStack(t, devstack.Config{Dir: filepath.Join(disk, "s")})
	b := newBucket(t)
	r := harness.StartService(t, stack, b.vars("ORCH_VOLUME_POOL=1"))
	c := r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	same := addFile(t, s, e.EngineID, size)

	empty := fill(t, disk, left)
	harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 507, "SNAPSHOT_FAILED")
	settled(t, c, "u")
	unharmed(t, c, e, "before")
	empty()
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if has := b.tidy(t, e.EngineID); len(has) != 1 {
		t.Errorf("snapshots %v", has)
	}

	harness.Remember(t, e, e.APIKey, "after")
	empty = fill(t, disk, left)
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", taken.SnapshotID)), 507, "SNAPSHOT_FAILED")
	settled(t, c, "u")
	unharmed(t, c, e, "before", "after")
	empty()
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
	same()
	b.noUploads(t)
}

// smallDisk returns the directory of a new file system with so many bytes.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	dir, err := os.MkdirTemp("", "d") // short, because sockets are below it
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", size))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill uses up a file system except for so many bytes, until empty is called.
func fill(t *testing.T, dir string, left int64) (empty func()) {
	t.Helper()
	var fs unix.Statfs_t
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err == nil {
		err = unix.Statfs(dir, &fs)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-left)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}
