// Package freeze copies a brain on its node, which is all that an engine is frozen for.
package freeze

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// Stats describe a copy.
type Stats struct {
	// Took is the time of the copy. It need not be on disk then.
	Took    time.Duration
	Entries int64
	Shared  int64 // files that share their blocks with the original
	Skipped int64 // sockets, devices and reserved names, which are not copied
	// SkippedNames are the first of them.
	SkippedNames []string
	// Changed is how many files and directories somebody changed during the copy.
	Changed int64
}

// maxNames limits SkippedNames.
const maxNames = 20

// Copy copies the directory from to the new directory to: files with their holes, modes,
// times, attributes and hard links, symbolic links, and FIFOs. It shares blocks where the
// file system can (FICLONE: XFS, Btrfs). What it copies gets this process's owner. Nobody
// should write to from during the copy; what somebody changes all the same is counted. After
// an error, the caller removes to.
//
// Errors have the kind NoRoom if the disk is full, Unreadable if an entry cannot be read.
func Copy(ctx context.Context, from, to string) (Stats, error) {
	began := time.Now()
	c := copier{ctx: ctx, to: to, links: map[tree.File]string{}}
	err := tree.Walk(ctx, from, &c)
	for _, dir := range c.dirs {
		_ = dir.Close()
	}
	if err == nil {
		var changed int64
		changed, err = changes(ctx, from, began)
		c.stats.Changed = max(changed, c.stats.Changed)
	}
	c.stats.Took = time.Since(began)
	return c.stats, brain.Local(err, brain.Unreadable, "the brain cannot be copied")
}

type copier struct {
	ctx   context.Context
	to    string
	dirs  []*os.File // the open directories of the copy, from the top down
	links map[tree.File]string
	stats Stats
	plain bool // the file system does not share blocks
}

func (c *copier) dir() *os.File { return c.dirs[len(c.dirs)-1] }

func (c *copier) Enter(e *tree.Entry, _ *os.File) error {
	var fd int
	var err error
	if len(c.dirs) == 0 {
		if err = os.Mkdir(c.to, 0o700); err == nil {
			fd, err = unix.Open(c.to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	} else {
		at := int(c.dir().Fd())
		if err = unix.Mkdirat(at, e.Name, 0o700); err == nil {
			fd, err = unix.Openat(at, e.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return err
	}
	c.dirs = append(c.dirs, os.NewFile(uintptr(fd), e.Path))
	c.stats.Entries++
	return nil
}

func (c *copier) Leave(e *tree.Entry, from *os.File) error {
	to := c.dir()
	defer to.Close()
	c.dirs = c.dirs[:len(c.dirs)-1]
	return finish(e, from, to)
}

func (c *copier) Other(e *tree.Entry) error {
	dir := c.dir()
	switch e.Kind() {
	case unix.S_IFREG:
		if !e.Linked() {
			break
		}
		first, seen := c.links[e.File()]
		if !seen {
			c.links[e.File()] = e.Path
			break
		}
		c.stats.Entries++
		return unix.Linkat(int(c.dirs[0].Fd()), first, int(dir.Fd()), e.Name, 0)
	case unix.S_IFLNK:
		target, err := e.Target()
		if errors.Is(err, unix.ENOENT) {
			c.Gone(e.Path)
			return nil
		}
		if err == nil {
			err = unix.Symlinkat(target, int(dir.Fd()), e.Name)
		}
		if err != nil {
			return err
		}
		c.stats.Entries++
		return tree.SetTime(dir, e.Name, e.Stat.Mtim)
	case unix.S_IFIFO:
		c.stats.Entries++
		if err := unix.Mknodat(int(dir.Fd()), e.Name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		if err := unix.Fchmodat(int(dir.Fd()), e.Name, e.Stat.Mode&0o7777, 0); err != nil {
			return err
		}
		return tree.SetTime(dir, e.Name, e.Stat.Mtim)
	default:
		c.Skip(e.Path)
		return nil
	}
	return c.file(e)
}

// Skip implements tree.Visitor.
func (c *copier) Skip(path string) {
	c.stats.Skipped++
	if len(c.stats.SkippedNames) < maxNames {
		c.stats.SkippedNames = append(c.stats.SkippedNames, filepath.ToSlash(path))
	}
}

// Gone implements tree.Forgiving.
func (c *copier) Gone(string) { c.stats.Changed++ }

func (c *copier) file(e *tree.Entry) error {
	from, err := e.Open()
	if errors.Is(err, unix.ENOENT) {
		c.Gone(e.Path)
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(int(c.dir().Fd()), e.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), e.Path)
	c.stats.Entries++
	return errors.Join(c.content(from, to, e.Stat.Size), finish(e, from, to), to.Close())
}

func (c *copier) content(from, to *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	if !c.plain {
		err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
		if err == nil {
			c.stats.Shared++
			return nil
		}
		if !unshared(err) {
			return err
		}
		c.plain = true
	}
	extents, err := tree.Extents(from, size)
	if err != nil {
		return err
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	for _, x := range extents {
		if err := copyRange(c.ctx, from, to, x); err != nil {
			return err
		}
	}
	return nil
}

// unshared reports whether an error means that blocks cannot be shared or copied here, as
// the manual pages of ioctl_ficlone and copy_file_range have it.
func unshared(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

// copyRange copies an extent in the kernel, or through this process where that cannot be.
func copyRange(ctx context.Context, from, to *os.File, x tree.Extent) error {
	read, write := x.Offset, x.Offset
	for left := x.Length; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(from.Fd()), &read, int(to.Fd()), &write, int(min(left, 64<<20)), 0)
		if err != nil && unshared(err) {
			return throughMemory(ctx, from, to, read, left)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // it has become shorter: see changes
		}
		left -= int64(n)
	}
	return nil
}

func throughMemory(ctx context.Context, from, to *os.File, at, length int64) error {
	b := make([]byte, min(length, 1<<20))
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.ReadAt(b[:min(length, int64(len(b)))], at)
		if n == 0 && errors.Is(err, io.EOF) {
			return nil // it has become shorter: see changes
		}
		if n == 0 {
			return err
		}
		if _, err := to.WriteAt(b[:n], at); err != nil {
			return err
		}
		at, length = at+int64(n), length-int64(n)
	}
	return nil
}

// finish sets what a file or directory has besides its content. The time is the last,
// because the rest changes it.
func finish(e *tree.Entry, from, to *os.File) error {
	attributes, err := tree.Xattrs(from)
	if err == nil {
		err = tree.SetXattrs(to, attributes)
	}
	if err == nil {
		err = unix.Fchmod(int(to.Fd()), e.Stat.Mode&0o7777)
	}
	if err == nil {
		err = tree.SetTimeOf(to, e.Stat.Mtim)
	}
	return err
}
