package worker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/archive"
	"github.com/septemberai/orch/brain/freeze"
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
	Order  string                 `json:"order"`
	Modes  map[string]os.FileMode `json:"modes"` // see archive.Unpacked
	Result brain.Result           `json:"result"`
}

const receiptName = "receipt.json"

func restore(ctx context.Context, order *brain.Order, w work, client *transfer.Client, r *reporter) (*brain.Result, error) {
	o := order.Restore
	at := func(parts ...string) string { return filepath.Join(append([]string{o.Volume}, parts...)...) }
	var got receipt
	there, err := readJSON(at(verified, receiptName), &got)
	if err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be read")
	}
	done, err := w.result()
	if err != nil {
		return nil, brain.Local(err, brain.Internal, "the work directory cannot be read")
	}
	if done != nil && !there {
		return done, removeDir(at(verified), o.Volume) // all but that was done
	}
	if !there {
		if got, err = fetch(ctx, order, client, r, at); err != nil {
			_ = tree.Remove(at(unverified))
			return nil, err
		}
	}
	if got.Order != order.ID {
		return nil, brain.Errorf(brain.NotEmpty, "the volume contains the restore of another order")
	}
	r.send(brain.Report{Phase: "install"})
	if err := install(&got, at); err != nil {
		return nil, brain.Local(err, brain.Internal, "the volume cannot be completed")
	}
	if err := writeJSON(w.path(resultFile), got.Result); err != nil {
		return nil, brain.Local(err, brain.Internal, "the result cannot be noted")
	}
	err = os.Remove(at(verified, receiptName))
	if err == nil {
		err = removeDir(at(verified), o.Volume)
	}
	return &got.Result, brain.Local(err, brain.Internal, "the volume cannot be completed")
}

// fetch fills the unverified directory, and makes it the verified one.
func fetch(ctx context.Context, order *brain.Order, client *transfer.Client, r *reporter, at func(...string) string) (got receipt, err error) {
	if err := tree.Remove(at(unverified)); err != nil {
		return got, brain.Local(err, brain.Internal, "the volume cannot be used")
	}
	names, err := os.ReadDir(at())
	if err != nil {
		return got, brain.Local(err, brain.Internal, "the volume cannot be read")
	}
	if len(names) > 0 {
		return got, brain.Errorf(brain.NotEmpty, "the volume is not empty")
	}
	into := at(unverified, treeName)
	if err := os.MkdirAll(into, 0o700); err != nil {
		return got, brain.Local(err, brain.Internal, "the volume cannot be used")
	}
	o := order.Restore
	d := client.Download(ctx, o.URL, o.StoredBytes)
	defer d.Close()
	stop := r.phase("download", d.Received)
	unpacked, err := archive.Unpack(ctx, d, o.Content, o.Identity, into)
	stop()
	if err != nil {
		return got, err
	}
	got = receipt{order.ID, unpacked.TopModes, brain.Result{Content: o.Content}}
	got.Result.Entries = unpacked.Entries
	if err = writeJSON(at(unverified, receiptName), got); err == nil {
		err = freeze.Sync(at())
	}
	if err == nil {
		err = os.Rename(at(unverified), at(verified))
	}
	if err == nil {
		err = syncDir(at())
	}
	return got, brain.Local(err, brain.Internal, "the volume cannot be written")
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
		if err := os.Chmod(at(name), mode); err != nil {
			return err
		}
	}
	if err := syncDir(at()); err != nil {
		return err
	}
	return removeDir(at(verified, treeName), at(verified))
}

// removeDir removes an empty directory, which may be gone, and syncs the one around it.
func removeDir(path, around string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(around)
}
