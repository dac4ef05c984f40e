package archive

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// dirs are the open directories on the way to the present entry, from the top down. An
// archive has a directory directly before what is in it. So an entry whose directory is not
// open is none of Pack's, and no name can lead through a link: each open directory was made
// here.
type dirs struct {
	open     []dir
	top      *os.Root
	entries  int64
	began    bool
	topModes map[string]uint32
	buffer   []byte
}

// writesBehind is the size from which a file is worth a system call of its own.
const writesBehind = 1 << 20

// dir is an open directory, and the entry with which it is finished.
type dir struct {
	root  *os.Root
	entry *entry
}

func newDirs(top *os.Root) *dirs {
	return &dirs{top: top, open: []dir{{root: top, entry: &entry{name: "."}}}, topModes: map[string]uint32{}, buffer: make([]byte, 256<<10)}
}

func (d *dirs) close() {
	for _, one := range d.open {
		_ = one.root.Close()
	}
}

// finish finishes all directories.
func (d *dirs) finish() error {
	if !d.began {
		return corrupt("it is empty")
	}
	for len(d.open) > 1 {
		if err := d.pop(); err != nil {
			return brain.Local(err, brain.Internal, "a directory cannot be finished")
		}
	}
	return nil
}

// pop finishes the innermost directory, now that nothing more is put into it.
func (d *dirs) pop() error {
	last := d.open[len(d.open)-1]
	d.open = d.open[:len(d.open)-1]
	defer last.root.Close()
	f, err := last.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	mode := last.entry.mode
	if len(d.open) == 1 && mode&0o200 == 0 {
		d.topModes[last.entry.name] = mode
		mode |= 0o700
	}
	return attributes(f, last.entry, mode)
}

// attributes sets what a file or directory has besides its content. The time is the last,
// because the rest changes it.
func attributes(f *os.File, e *entry, mode uint32) error {
	err := tree.SetXattrs(f, e.xattrs)
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), mode)
	}
	if err == nil {
		err = tree.SetTimeOf(f, unix.Timespec{Sec: e.seconds, Nsec: e.nanos})
	}
	return err
}

// restore creates one entry. data is the content of a file.
func (d *dirs) restore(e *entry, data io.Reader) error {
	d.entries++
	if e.kind == typeDir && e.name == "." {
		if d.began {
			return corrupt("the top directory is given twice")
		}
		d.began = true
		return nil
	}
	if !d.began {
		return corrupt("the top directory is missing")
	}
	for parent := path.Dir(e.name); d.open[len(d.open)-1].entry.name != parent; {
		if len(d.open) == 1 {
			return corrupt("an entry before its directory")
		}
		if err := d.pop(); err != nil {
			return err
		}
	}
	if e.kind == typeDir && len(d.open) > tree.MaxDepth { // the top counts, too
		return corrupt("directories are nested too deep")
	}
	at, name := d.open[len(d.open)-1].root, path.Base(e.name)
	err := d.create(at, name, e, data)
	if errors.Is(err, fs.ErrExist) {
		return corrupt("a name is given twice")
	}
	return err
}

func (d *dirs) create(at *os.Root, name string, e *entry, data io.Reader) error {
	switch e.kind {
	case typeDir:
		if err := at.Mkdir(name, 0o700); err != nil {
			return err
		}
		sub, err := at.OpenRoot(name)
		if err != nil {
			return err
		}
		d.open = append(d.open, dir{sub, e})
		return nil
	case typeFile:
		f, err := at.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		err = d.content(f, e, data)
		if err == nil {
			err = attributes(f, e, e.mode)
		}
		return errors.Join(err, f.Close())
	case typeLink:
		return d.link(e)
	case typeSymlink:
		if err := at.Symlink(e.link, name); err != nil {
			return err
		}
	case typeFIFO:
		if err := fifo(at, name, e); err != nil {
			return err
		}
	}
	return within(at, func(dir *os.File) error {
		return tree.SetTime(dir, name, unix.Timespec{Sec: e.seconds, Nsec: e.nanos})
	})
}

// link makes another name for a file of this archive. os.Root lets no name lead out of the
// top directory; names that lead through links inside of it are not made by Pack either.
func (d *dirs) link(e *entry) error {
	parts := strings.Split(e.link, "/")
	for i := range parts {
		info, err := d.top.Lstat(strings.Join(parts[:i+1], "/"))
		last := i == len(parts)-1
		if err != nil || last && !info.Mode().IsRegular() || !last && !info.IsDir() {
			return corrupt("a hard link to something that is no file of the archive")
		}
	}
	return d.top.Link(e.link, e.name)
}

func fifo(at *os.Root, name string, e *entry) error {
	return within(at, func(dir *os.File) error {
		fd := int(dir.Fd())
		if err := unix.Mknodat(fd, name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		return unix.Fchmodat(fd, name, e.mode, 0)
	})
}

// within opens a directory for calls that os.Root does not have. Their name is that of an
// entry that was just made there.
func within(at *os.Root, do func(dir *os.File) error) error {
	dir, err := at.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

// content writes a file, and leaves its holes.
func (d *dirs) content(f *os.File, e *entry, data io.Reader) error {
	extents := e.extents
	if !e.sparse {
		extents = []tree.Extent{{Length: e.size}}
	} else if err := f.Truncate(e.size); err != nil {
		return err
	}
	for _, x := range extents {
		to := io.NewOffsetWriter(f, x.Offset)
		if _, err := io.CopyBuffer(struct{ io.Writer }{to}, io.LimitReader(data, x.Length), d.buffer); err != nil {
			return err
		}
	}
	if e.size >= writesBehind {
		// The kernel writes it to the disk while the rest is unpacked: the caller flushes all
		// in the end. Where that is not supported, only the flush takes longer.
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}
