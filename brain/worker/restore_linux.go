package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/archive"
	"github.com/septemberai/orch/brain/transfer"
	"github.com/septemberai/orch/brain/tree"
)

// A volume is a directory of somebody else's, often a mount point, which cannot be
// exchanged. So a restore goes through two directories in it:
//
//	.orch-restore.unverified   filled while the object is fetched; worth nothing, and removed
//	                           by the next start
//	.orch-restore.verified     the same after everything was verified and is on disk: from
//	                           this rename on, the restore cannot fail on the object any more
//
// From there each entry is moved into the volume. A crash leaves each of them in one place,
// and the next start moves the rest. The volume is complete when neither directory is in it.
const (
	unverified = tree.Reserved + ".unverified"
	verified   = tree.Reserved + ".verified"
)

// receipt lies in the directory, beside the tree.
type receipt struct {
	Order  string            `json:"order"`
	Modes  map[string]uint32 `json:"modes"` // see archive.Unpacked
	Result brain.Result      `json:"result"`
}

const receiptName = "receipt.json"

func restore(ctx context.Context, order *brain.Order, w work, client *transfer.Client, r *reporter) (*brain.Result, error) {
	o := order.Restore
	unlock, err := lockDir(o.Volume, "the volume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	of, err := volumeOf(o)
	if err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be read")
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{o.Volume}, parts...)...) }
	got, err := readReceipt(at)
	if err != nil {
		return nil, err
	}
	if got == nil {
		done, err := w.result(of)
		if done != nil && err == nil {
			// All was done but this.
			err = brain.Local(removeDir(at(verified), o.Volume), brain.Internal, "the volume cannot be completed")
		}
		if done != nil || err != nil {
			return done, err
		}
		if err := onlyUnverified(at); err != nil {
			return nil, err
		}
		if got, err = fetch(ctx, order, client, r, at); err != nil {
			_ = tree.Remove(at(unverified))
			return nil, err
		}
	}
	if got.Order != order.ID {
		return nil, brain.Errorf(brain.NotEmpty, "the volume contains the restore of another order")
	}
	r.send(brain.Report{Phase: "install"})
	if err := install(got, at); err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be completed")
	}
	if err := w.note(of, &got.Result, writeFile); err != nil {
		return nil, err
	}
	err = os.Remove(at(verified, receiptName))
	if err == nil {
		err = removeDir(at(verified), o.Volume)
	}
	return &got.Result, brain.Local(err, brain.Internal, "the volume cannot be completed")
}

// volumeOf identifies a volume and what is restored into it. The path alone does not: the
// volume may have been replaced, and then often has the inode of the one before.
func volumeOf(o *brain.RestoreOrder) (string, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, o.Volume, 0, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d:%d %d %d.%d %s", o.Volume, s.Dev_major, s.Dev_minor, s.Ino, s.Btime.Sec, s.Btime.Nsec, o.SHA256), nil
}

// readReceipt returns the receipt of a verified restore in the volume, or nil. Whatever is in
// the volume may have been made by an engine.
func readReceipt(at func(...string) string) (*receipt, error) {
	info, err := os.Lstat(at(verified))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !info.IsDir() {
		return nil, brain.Errorf(brain.NotEmpty, "%s in the volume is not a directory", verified)
	}
	var got receipt
	there := false
	if err == nil {
		there, err = readJSON(at(verified, receiptName), &got)
	}
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) && !errors.Is(err, unix.ELOOP) {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be read")
	}
	if err != nil {
		return nil, brain.Errorf(brain.NotEmpty, "the receipt in the volume was not written by a restore")
	}
	if !there {
		return nil, nil
	}
	for name, mode := range got.Modes {
		if name == "" || name == "." || name == ".." || strings.Contains(name, "/") || mode > 0o7777 {
			return nil, brain.Errorf(brain.NotEmpty, "the receipt in the volume was not written by a restore")
		}
	}
	return &got, nil
}

// onlyUnverified returns an error if the volume contains something else than what a restore
// that failed has left.
func onlyUnverified(at func(...string) string) error {
	names, err := os.ReadDir(at())
	if err != nil {
		return brain.Local(err, brain.Internal, "the volume cannot be read")
	}
	for _, d := range names {
		if d.Name() != unverified {
			return brain.Errorf(brain.NotEmpty, "the volume is not empty")
		}
	}
	return nil
}

// fetch fills the unverified directory, and makes it the verified one.
func fetch(ctx context.Context, order *brain.Order, client *transfer.Client, r *reporter, at func(...string) string) (*receipt, error) {
	if err := tree.Remove(at(unverified)); err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be used")
	}
	into := at(unverified, treeName)
	if err := os.MkdirAll(into, 0o700); err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be used")
	}
	o := order.Restore
	d := client.Download(ctx, o.URL, o.StoredBytes)
	defer d.Close()
	stop := r.phase("download", d.Received)
	unpacked, err := archive.Unpack(ctx, d, o.Content, o.Identity, into)
	stop()
	if err != nil {
		return nil, err
	}
	got := &receipt{order.ID, unpacked.TopModes, brain.Result{Content: o.Content}}
	got.Result.Entries = unpacked.Entries
	if err = writeJSON(at(unverified, receiptName), got, writeVolatile); err == nil {
		err = flush(at())
	}
	if err == nil {
		err = os.Rename(at(unverified), at(verified))
	}
	if err == nil {
		err = brain.SyncDir(at())
	}
	return got, brain.Local(err, brain.Internal, "the volume cannot be written")
}

// flush makes everything on a file system durable.
func flush(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// install moves what is not in its place yet.
func install(got *receipt, at func(...string) string) error {
	names, err := os.ReadDir(at(verified, treeName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range names {
		err := unix.Renameat2(unix.AT_FDCWD, at(verified, treeName, d.Name()), unix.AT_FDCWD, at(d.Name()), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			return brain.Errorf(brain.NotEmpty, "somebody has written to the volume")
		}
		if err != nil {
			return err
		}
	}
	for name, mode := range got.Modes {
		if err := chmodDir(at(name), mode); err != nil {
			return err
		}
	}
	if err := brain.SyncDir(at()); err != nil {
		return err
	}
	return removeDir(at(verified, treeName), at(verified))
}

// chmodDir sets the mode of a directory, and follows no link.
func chmodDir(path string, mode uint32) error {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if s.Mode&unix.S_IFMT == unix.S_IFDIR && s.Mode&0o7777 == mode {
		return nil // before a restart; with that mode it can perhaps not be opened
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return errors.Join(unix.Fchmod(fd, mode), unix.Close(fd))
}

// removeDir removes an empty directory, which may be gone, and syncs the one around it.
func removeDir(path, around string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return brain.SyncDir(around)
}
