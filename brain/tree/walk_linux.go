// Package tree reads directories as they are: without following links, with holes and
// extended attributes. A brain is written by a program that nobody trusts.
package tree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
)

const (
	// Reserved is how names begin that a restore uses for itself in the top directory. They
	// are never in a snapshot.
	Reserved = ".orch-restore"
	// MaxDepth is how deep directories may be nested: each level costs two
	// open files during a copy.
	MaxDepth = 400
)

// Entry is something in a directory.
type Entry struct {
	Parent *os.File // nil for the top
	Name   string
	Path   string // below the top, which is "."
	Stat   unix.Stat_t
}

// Kind is the entry's type, one of unix.S_IF*.
func (e *Entry) Kind() uint32 { return e.Stat.Mode & unix.S_IFMT }

// File identifies what an entry names: hard links are entries of the same file.
type File struct{ Device, Inode uint64 }

// File returns the file that the entry names.
func (e *Entry) File() File { return File{e.Stat.Dev, e.Stat.Ino} }

// Linked reports whether the entry is a file that other names may name, too.
func (e *Entry) Linked() bool { return e.Kind() == unix.S_IFREG && e.Stat.Nlink > 1 }

// Open opens a file or directory for reading; it follows no link.
func (e *Entry) Open() (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
	if e.Kind() == unix.S_IFDIR {
		flags |= unix.O_DIRECTORY
	}
	fd, err := unix.Openat(int(e.Parent.Fd()), e.Name, flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	return os.NewFile(uintptr(fd), e.Path), nil
}

// Target returns where a symbolic link leads.
func (e *Entry) Target() (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(e.Parent.Fd()), e.Name, b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: e.Path, Err: err}
	}
	return string(b[:n]), nil
}

// Visitor gets each entry: a directory before and after what is in it. dir is open until
// Leave returns. Skip gets the names that Walk omits.
type Visitor interface {
	Enter(e *Entry, dir *os.File) error
	Leave(e *Entry, dir *os.File) error
	Other(e *Entry) error
	Skip(path string)
}

// Forgiving is a Visitor that goes on when somebody removes entries during the walk. Gone is
// called for each. Without it that is an error.
type Forgiving interface{ Gone(path string) }

// gone returns nil if err means that an entry was removed and the visitor goes on.
func gone(v Visitor, path string, err error) error {
	if f, forgives := v.(Forgiving); forgives && errors.Is(err, unix.ENOENT) {
		f.Gone(path)
		return nil
	}
	return err
}

// Walk visits everything at and below path in the order of the names' bytes, so that two
// walks of one tree are the same. It omits Reserved names. A file that cannot be read is an
// error of the kind brain.Unreadable.
func Walk(ctx context.Context, path string, v Visitor) error {
	dir, err := os.Open(path)
	if err != nil {
		return brain.Local(err, brain.Unreadable, "the directory cannot be opened")
	}
	defer dir.Close()
	top := Entry{Name: ".", Path: "."}
	if err := unix.Fstat(int(dir.Fd()), &top.Stat); err != nil {
		return err
	}
	return walk(ctx, &top, dir, v, 0)
}

func walk(ctx context.Context, at *Entry, dir *os.File, v Visitor, depth int) error {
	if depth > MaxDepth {
		return brain.Errorf(brain.Unreadable, "directories are nested deeper than %d", MaxDepth)
	}
	if err := v.Enter(at, dir); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return brain.Local(err, brain.Unreadable, "a directory cannot be listed")
	}
	slices.Sort(names)
	for _, name := range names {
		if depth == 0 && strings.HasPrefix(name, Reserved) {
			v.Skip(name)
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e := Entry{Parent: dir, Name: name, Path: name}
		if depth > 0 {
			e.Path = at.Path + "/" + name
		}
		if err := unix.Fstatat(int(dir.Fd()), name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err = gone(v, e.Path, err); err != nil {
				return brain.Local(err, brain.Unreadable, "an entry cannot be read")
			}
			continue
		}
		if e.Kind() != unix.S_IFDIR {
			if err := v.Other(&e); err != nil {
				return err
			}
			continue
		}
		sub, err := e.Open()
		if err != nil {
			if err = gone(v, e.Path, err); err != nil {
				return brain.Local(err, brain.Unreadable, "a directory cannot be opened")
			}
			continue
		}
		err = walk(ctx, &e, sub, v, depth+1)
		_ = sub.Close()
		if err != nil {
			return err
		}
	}
	return v.Leave(at, dir)
}

// Remove removes path and everything below it, directories without write permission
// included. It is no error if there is nothing.
func Remove(path string) error {
	if err := os.RemoveAll(path); err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	err := filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700) //nolint:gosec // G302: a directory
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(path))
}
