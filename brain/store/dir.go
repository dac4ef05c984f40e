package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/septemberai/orch/brain"
)

// Dir is a Store in a directory. It suits one machine: workers must see the directory under
// the same path, and write to it as this process's user. URLs do not expire. While an upload
// is completed, it needs its size twice, except on file systems that share blocks.
type Dir struct{ root string }

// path returns where a name of the store is.
func (d *Dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// upload returns the directory of an upload's parts. Its id names the engine, by which Erase
// finds it; one that an earlier version began is a UUID alone.
func (d *Dir) upload(uploadID string) (string, error) {
	engineID, unique, named := strings.Cut(uploadID, ".")
	if !named {
		unique = uploadID
	}
	if uuid.Validate(unique) != nil || named && !brain.IsID(engineID) {
		return "", brain.Errorf(brain.NotFound, "there is no such upload")
	}
	return d.path("uploads/" + uploadID), nil
}

// local gives an error of the file system its kind.
func local(err error, what string) error {
	var own *brain.Error
	switch {
	case err == nil || errors.As(err, &own):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return brain.Errorf(brain.NotFound, "%s: %w", what, err)
	case errors.Is(err, fs.ErrPermission):
		return brain.Errorf(brain.Refused, "%s: %w", what, err)
	case brain.KindOf(err) == brain.NoRoom:
		return brain.Errorf(brain.OverQuota, "%s: %w", what, err)
	case brain.KindOf(err) == brain.Interrupted:
		return err
	}
	return brain.Errorf(brain.Away, "%s: %w", what, err) // a disk or a mount that fails
}

// present returns an error of the kind Away if the directory of the store is missing: it may
// be a disk that is not mounted, and is therefore not created.
func (d *Dir) present() error {
	if _, err := os.Stat(d.root); err != nil {
		return brain.Errorf(brain.Away, "the directory of the snapshot store: %w", err)
	}
	return nil
}

// Begin implements Store.
func (d *Dir) Begin(_ context.Context, of Snapshot) (string, error) {
	if err := errors.Join(of.check(), d.present()); err != nil {
		return "", err
	}
	id := of.EngineID + "." + uuid.NewString()
	return id, local(os.MkdirAll(d.path("uploads/"+id), 0o700), "beginning an upload")
}

// PartURLs implements Store.
func (d *Dir) PartURLs(_ context.Context, _ Snapshot, uploadID string, n int, _ time.Duration) ([]string, error) {
	dir, err := d.upload(uploadID)
	if err != nil {
		return nil, err
	}
	all := make([]string, n)
	for i := range all {
		all[i] = fileURL(partPath(dir, i+1))
	}
	return all, nil
}

func partPath(dir string, number int) string { return filepath.Join(dir, fmt.Sprintf("%05d", number)) }

func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// Complete implements Store.
func (d *Dir) Complete(ctx context.Context, of Snapshot, uploadID string, n int, size int64) error {
	dir, err := d.upload(uploadID)
	if err = errors.Join(of.check(), d.present(), err); err != nil {
		return err
	}
	object := d.path(of.object())
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		// An earlier call may have completed it.
		if info, e := os.Stat(object); e == nil && info.Size() == size {
			return nil
		}
		return local(err, "completing an upload")
	}
	err = replace(object, func(w *os.File) error {
		total := int64(0)
		for number := 1; number <= n; number++ {
			copied, err := appendFile(w, partPath(dir, number))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return brain.Errorf(brain.Corrupt, "the upload has no part %d", number)
			}
			if err != nil {
				return err
			}
			total += copied
		}
		if total != size {
			return brain.Errorf(brain.Corrupt, "the upload has %d bytes of %d", total, size)
		}
		return nil
	})
	if err == nil {
		err = discard(dir)
	}
	return local(err, "completing an upload")
}

// discard removes the directory of an upload. It loses its name first: after a crash the
// upload has all its parts, or does not exist. Sweep removes the rest.
func discard(dir string) error {
	gone := dir + ".removed"
	if err := os.Rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

// Abort implements Store.
func (d *Dir) Abort(_ context.Context, _ Snapshot, uploadID string) error {
	if err := d.present(); err != nil {
		return err
	}
	dir, err := d.upload(uploadID)
	if err != nil {
		return nil // there is none
	}
	return local(discard(dir), "aborting an upload")
}

// Sweep implements Store. It also removes what a crash left beside an object.
func (d *Dir) Sweep(ctx context.Context, before time.Time) (int, error) {
	if err := d.present(); err != nil {
		return 0, err
	}
	swept := 0
	for _, pattern := range []string{"uploads/*", "objects/*/.new-*", "manifests/*/.new-*"} {
		all, err := filepath.Glob(d.path(pattern))
		if err != nil {
			return swept, err
		}
		for _, path := range all {
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ModTime().Before(before) {
				continue // it is gone, or in use: the time is that of its newest part
			}
			if err == nil && ctx.Err() == nil {
				err = os.RemoveAll(path)
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				return swept, local(err, "removing an upload")
			}
			swept++
		}
	}
	return swept, nil
}

// ObjectURL implements Store.
func (d *Dir) ObjectURL(_ context.Context, of Snapshot, _ time.Duration) (string, error) {
	return fileURL(d.path(of.object())), of.check()
}

// PutManifest implements Store.
func (d *Dir) PutManifest(_ context.Context, m *brain.Manifest) error {
	of, text, err := format(m)
	if err = errors.Join(err, d.present()); err != nil {
		return err
	}
	return local(replace(d.path(of.manifest()), func(w *os.File) error {
		_, err := w.Write(text)
		return err
	}), "writing a manifest")
}

// Manifest implements Store.
func (d *Dir) Manifest(_ context.Context, of Snapshot) (*brain.Manifest, error) {
	if err := errors.Join(of.check(), d.present()); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(d.path(of.manifest()))
	if err != nil {
		return nil, local(err, "reading a manifest")
	}
	return parse(of, text)
}

// List implements Store.
func (d *Dir) List(ctx context.Context, engineID string) iter.Seq2[Snapshot, error] {
	return d.list(ctx, engineID, func() ([]string, error) { return []string{engineID}, nil })
}

// All implements Store.
func (d *Dir) All(ctx context.Context, after string) iter.Seq2[Snapshot, error] {
	return d.list(ctx, cmp.Or(after, "all"), func() ([]string, error) {
		engines, err := names(d.path("manifests"))
		return slices.DeleteFunc(engines, func(engine string) bool { return engine <= after }), err
	})
}

// list lists the snapshots of engines. engineID is the one that was named.
func (d *Dir) list(ctx context.Context, engineID string, engines func() ([]string, error)) iter.Seq2[Snapshot, error] {
	return func(yield func(Snapshot, error) bool) {
		err := d.present()
		if !brain.IsID(engineID) {
			err = errors.Join(err, brain.Errorf(brain.BadOrder, "%q is no id of an engine", engineID))
		}
		var of []string
		if err == nil {
			of, err = engines()
		}
		for _, engine := range of {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				break
			}
			var files []string
			if files, err = names(d.path("manifests/" + engine)); err != nil {
				break
			}
			for _, file := range files {
				if of, ok := snapshotOf("manifests/" + engine + "/" + file); ok && !yield(of, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(Snapshot{}, local(err, "listing snapshots"))
		}
	}
}

// names returns the names in a directory, which may be missing.
func names(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	list := make([]string, len(all))
	for i, one := range all {
		list[i] = one.Name()
	}
	return list, err
}

// Delete implements Store.
func (d *Dir) Delete(_ context.Context, of Snapshot) error {
	if err := errors.Join(of.check(), d.present()); err != nil {
		return err
	}
	for _, name := range []string{of.object(), of.manifest()} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return local(err, "deleting a snapshot")
		}
	}
	return nil
}
