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

// What the kernel calls these things (linux/fs.h, linux/quota.h, linux/dqblk_xfs.h; ioctl
// numbers as they are on amd64 and arm64).
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

// enforced returns nil where the filesystem of a directory enforces project quotas, or in
// words for an operator why it does not.
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

// inodesPerMB is how many files, directories included, a volume may have for each MiB of
// its quota: as many as ext4 makes room for (mke2fs.conf: inode_ratio 16384). Without that
// one volume of empty files could take all. leastInodes is for a small one.
const (
	inodesPerMB = 64
	leastInodes = 1024
)

// limit makes a directory a project, with all that is in it, and sets the project's quota;
// 0: it has none. It is a project without one as well, so that one can be set later without
// touching its files, and so that what it uses is counted.
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

// projectOf is the project of a directory. One that has none gets one, with what is in it.
// The directory gets its number first, so that it is taken, and the flag by which what is
// made in it belongs to the project last: without that, files may not have it yet.
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
			return err // a link and the like takes no room to speak of
		}
		return join(path, a.project)
	})
	if err != nil {
		return 0, err
	}
	a.flags |= projectInherit
	return a.project, ioctl(d, fsSetXattr, &a)
}

// attributesOf reads those of a volume's directory. A project that it has from the
// directory above, where that is one, is not its own.
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

// join gives a file the project of its volume; a directory passes it on to what is made
// there.
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

// Projects with low numbers are those that people and other programs choose (/etc/projid,
// Docker).
const firstProject = 1 << 24

// takeProject gives a directory a project that no other file of the filesystem has. The
// number follows from the volume's id, and is taken where the filesystem counts anything
// for it or has a limit for it; then the next is tried. What is taken is so known to the
// filesystem alone: there is no list of the plugin's that could be lost or differ from it,
// and projects of other programs are left alone too. (An inode's number would be as
// unique, but has 64 bits, and a project 32.)
func takeProject(d *os.File, a *attributes) error {
	// Other processes of the plugin look and take at the same time.
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
	if project == ^uint32(0) { // means "none" to the kernel
		return false, nil
	}
	var q quota
	err := quotactl(d, getQuota, project, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) { // XFS has no record of it
		return true, nil
	}
	return q.blocks|q.softBlocks|q.inodes|q.softInodes|q.bytes|q.isUsed == 0, err
}

// unlimit takes the quota of a directory away, so that its project's number is free when
// the directory is.
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
