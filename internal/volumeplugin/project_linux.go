package volumeplugin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's names of these numbers (linux/fs.h, linux/quota.h, linux/dqblk_xfs.h). The
// ioctl numbers are those of amd64 and arm64.
const (
	fsGetXattr      = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr      = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit  = 0x200      // FS_XFLAG_PROJINHERIT
	projectQuota    = 2          // PRJQUOTA
	getQuota        = 0x800007   // Q_GETQUOTA
	setQuota        = 0x800008   // Q_SETQUOTA
	getState        = 'X'<<8 + 5 // Q_XGETQSTAT; ext4 knows it too
	projectEnforced = 1 << 5     // FS_QUOTA_PDQ_ENFD
	validLimits     = 1 | 4      // QIF_BLIMITS, QIF_ILIMITS
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// quota is struct if_dqblk.
type quota struct {
	blocks, softBlocks, bytes  uint64 // blocks of 1 KiB
	inodes, softInodes, isUsed uint64
	_, _                       uint64
	valid                      uint32
	_                          uint32
}

func ioctl(d *os.File, request uintptr, a *attributes) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), request, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(d)
	if errno != 0 {
		return errno
	}
	return nil
}

func quotactl(d *os.File, command uintptr, project uint32, at unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, d.Fd(), command<<8|projectQuota, uintptr(project), uintptr(at), 0, 0)
	runtime.KeepAlive(d)
	if errno != 0 {
		return errno
	}
	return nil
}

// enforced returns nil if the filesystem of a directory enforces project quotas; otherwise
// an error that tells the operator what to change.
func enforced(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	var state [128]byte // struct fs_quota_stat is shorter
	err = quotactl(d, getState, 0, unsafe.Pointer(&state))
	if err == nil && binary.NativeEndian.Uint16(state[2:])&projectEnforced != 0 {
		return nil
	}
	why := "the filesystem of Nomad's host volumes enforces no project quotas: it must be XFS, or ext4 made with -O quota,project, and mounted with the option prjquota"
	if errors.Is(err, unix.ENOSYS) {
		why += ", by a kernel that has them (Linux 5.14 or newer)"
	}
	return errors.New(why)
}

// inodesPerMB is the maximum number of files and directories in a volume per MiB of its
// quota: as many as ext4 allocates by default (mke2fs.conf: inode_ratio 16384). Without a
// maximum, one volume of empty files could use up all inodes. leastInodes is the minimum
// for a small volume.
const (
	inodesPerMB = 64
	leastInodes = 1024
)

// limit makes a directory and its content a project, and sets the project's quota in MiB;
// 0: no quota. Without a quota it is a project too, so that one can be set later without
// touching its files, and so that its usage is counted.
func limit(dir string, mb uint32) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	project, err := projectOf(d)
	if err != nil {
		return fmt.Errorf("cannot make the volume a project of its filesystem: %w", err)
	}
	q := quota{valid: validLimits}
	if mb > 0 {
		q.blocks, q.inodes = uint64(mb)*1024, max(uint64(mb)*inodesPerMB, leastInodes)
	}
	if err := quotactl(d, setQuota, project, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("cannot set the quota of project %d: %w", project, err)
	}
	return nil
}

// projectOf returns the project of a directory. If it has none, the directory and its
// content get one. The directory gets the number first, so that the number is taken. It
// gets the flag that makes new files inherit the project last: while the flag is missing,
// files may lack the project.
func projectOf(d *os.File) (uint32, error) {
	a, err := attributesOf(d)
	if err != nil || a.project != 0 && a.flags&projectInherit != 0 {
		return a.project, err
	}
	if a.project == 0 {
		if err := takeProject(d, &a); err != nil {
			return 0, err
		}
	}
	err = filepath.WalkDir(d.Name(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == d.Name() || !e.IsDir() && !e.Type().IsRegular() {
			return err // links and other special files use almost no space
		}
		return join(path, a.project)
	})
	if err != nil {
		return 0, err
	}
	a.flags |= projectInherit
	return a.project, ioctl(d, fsSetXattr, &a)
}

// attributesOf reads the attributes of a volume's directory. A project that is inherited
// from the parent directory does not count.
func attributesOf(d *os.File) (a attributes, err error) {
	above, err := os.Open(filepath.Dir(d.Name()))
	if err != nil {
		return a, err
	}
	defer above.Close()
	var outer attributes
	if err := errors.Join(ioctl(d, fsGetXattr, &a), ioctl(above, fsGetXattr, &outer)); err != nil {
		return a, err
	}
	if a.project == outer.project {
		a.project = 0
	}
	return a, nil
}

// join gives a file the project of its volume. A directory passes it on to new files.
func join(path string, project uint32) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var a attributes
	if err := ioctl(f, fsGetXattr, &a); err != nil {
		return err
	}
	a.project = project
	if i, err := f.Stat(); err == nil && i.IsDir() {
		a.flags |= projectInherit
	}
	return ioctl(f, fsSetXattr, &a)
}

// firstProject is above the low numbers that administrators and other programs use
// (/etc/projid, Docker).
const firstProject = 1 << 24

// takeProject gives a directory a project number that no other file of the filesystem has.
// The number is derived from the volume's id. If the filesystem counts anything for it, or
// has a limit for it, it is in use, and the next one is tried. So only the filesystem
// itself records which numbers are in use: the plugin needs no list that could be lost or
// outdated, and other programs' projects are not touched. (An inode number would be unique
// too, but has 64 bits, and a project 32.)
func takeProject(d *os.File, a *attributes) error {
	// Other processes of the plugin may search for a number at the same time.
	all, err := os.Open(filepath.Dir(d.Name()))
	if err != nil {
		return err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(filepath.Base(d.Name())))
	for id := h.Sum32() | firstProject; ; id = (id + 1) | firstProject {
		free, err := isFree(d, id)
		if err != nil {
			return err
		}
		if free {
			a.project = id
			return ioctl(d, fsSetXattr, a)
		}
	}
}

func isFree(d *os.File, project uint32) (bool, error) {
	if project == ^uint32(0) { // means "none" in the kernel
		return false, nil
	}
	var q quota
	err := quotactl(d, getQuota, project, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) { // XFS has no record of this number
		return true, nil
	}
	return q.blocks|q.softBlocks|q.inodes|q.softInodes|q.bytes|q.isUsed == 0, err
}

// unlimit removes the quota of a directory, so that its project number is free after the
// directory is deleted.
func unlimit(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	a, err := attributesOf(d)
	if err != nil || a.project == 0 {
		return err
	}
	q := quota{valid: validLimits}
	return quotactl(d, setQuota, a.project, unsafe.Pointer(&q))
}
