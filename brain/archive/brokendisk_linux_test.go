package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
)

// TestBrokenDisk: a write that a disk refuses after the program has ended it is lost without a
// sign to those who read the file. No archive is made of such a file.
func TestBrokenDisk(t *testing.T) {
	disk := thinDisk(t, 30<<20)
	wrote := bytes.Repeat([]byte("the brain's content\n"), 3<<20)
	file := filepath.Join(disk, "brain")
	if err := os.WriteFile(file, wrote, 0o600); err != nil {
		t.Fatal(err) // its disk has no room for it, but does not know it yet
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// The kernel writes it, as it does after some seconds, and then needs the memory for
	// something else.
	lost := func() bool {
		if err := errors.Join(unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
			t.Fatal(err)
		}
		read, err := os.ReadFile(file)
		return err != nil || !bytes.Equal(read, wrote)
	}
	for until := time.Now().Add(time.Minute); !lost(); {
		if time.Now().After(until) {
			t.Fatal("the disk has no error")
		}
	}
	packed, err := Pack(t.Context(), disk, newKey(t, newIdentity(t)), io.Discard)
	if err == nil {
		t.Fatalf("packed %+v of a file that its disk does not have", packed)
	}
	wantKind(t, err, brain.NoRoom)
}

// thinDisk mounts an ext4 file system that takes more than its disk has: from so many bytes on,
// the disk refuses to write.
func thinDisk(t *testing.T, has int) (mounted string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	run := func(name string, args ...string) error {
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		return err
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", has)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	need(t, "mkfs.ext4", "e2fsprogs")
	image, mounted := filepath.Join(dir, "disk"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 8*int64(has)); err != nil {
		t.Fatal(err)
	}
	if err := run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image); err != nil {
		t.Fatal(err)
	}
	if err := run("mount", "-o", "loop", image, mounted); err != nil {
		t.Skip("this machine has no loop devices: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return mounted
}
