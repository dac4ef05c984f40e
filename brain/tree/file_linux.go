package tree

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extent is a part of a file that is not a hole.
type Extent struct{ Offset, Length int64 }

// MaxExtents limits how many extents of a file are told apart, because each costs memory.
// The last one includes the holes after it.
const MaxExtents = 1 << 16

// Extents returns what of a file of the given size is not a hole. Where the file system
// does not know holes, that is the whole file.
func Extents(f *os.File, size int64) ([]Extent, error) {
	var all []Extent
	for at := int64(0); at < size; {
		begin, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if errors.Is(err, unix.EINVAL) {
			return []Extent{{0, size}}, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := f.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if len(all) == MaxExtents-1 {
			end = size
		}
		end = min(end, size)
		if begin >= end {
			break
		}
		all = append(all, Extent{begin, end - begin})
		at = end
	}
	return all, nil
}

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// Xattrs returns the attributes of the namespace "user", which are all that a program
// without privileges can set. A file system without attributes has none.
func Xattrs(f *os.File) ([]Xattr, error) {
	fd := int(f.Fd())
	list, err := value(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil || list == "" {
		return nil, err
	}
	var all []Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		v, err := value(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: f.Name(), Err: err}
		}
		all = append(all, Xattr{name, v})
	}
	slices.SortFunc(all, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// value reads a value whose length the first call returns.
func value(read func([]byte) (int, error)) (string, error) {
	n, err := read(nil)
	for err == nil && n > 0 {
		b := make([]byte, n)
		if n, err = read(b); err == nil {
			return string(b[:n]), nil
		}
		if errors.Is(err, unix.ERANGE) { // it has grown
			n, err = read(nil)
		}
	}
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	return "", err
}

// SetXattrs sets attributes. A file system without attributes is an error.
func SetXattrs(f *os.File, all []Xattr) error {
	for _, x := range all {
		if err := unix.Fsetxattr(int(f.Fd()), x.Name, []byte(x.Value), 0); err != nil {
			return &os.PathError{Op: "setxattr", Path: f.Name(), Err: err}
		}
	}
	return nil
}

// SetTime sets the time of the last change of what name in dir names, and not of what a
// link leads to.
func SetTime(dir *os.File, name string, modified unix.Timespec) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, modified}
	if err := unix.UtimesNanoAt(int(dir.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// SetTimeOf sets the time of the last change of an open file or directory (futimens(3)).
func SetTimeOf(f *os.File, modified unix.Timespec) error {
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, modified}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	runtime.KeepAlive(f)
	if errno != 0 {
		return &os.PathError{Op: "utimensat", Path: f.Name(), Err: errno}
	}
	return nil
}
