package audit

import (
	"os"
	"syscall"
)

// keepSize makes fallocate keep the file's size (FALLOC_FL_KEEP_SIZE of linux/falloc.h).
const keepSize = 1

// allocateBlocks allocates the disk blocks of the first n bytes of a file.
func allocateBlocks(f *os.File, n int64) error {
	return syscall.Fallocate(int(f.Fd()), 0, 0, n)
}

// allocateBeyond allocates the disk blocks of n bytes from offset from, and keeps the
// file's size.
func allocateBeyond(f *os.File, from, n int64) error {
	return syscall.Fallocate(int(f.Fd()), keepSize, from, n)
}
