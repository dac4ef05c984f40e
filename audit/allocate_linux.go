package audit

import (
	"os"
	"syscall"
)

// keepSize leaves a file's size as it is (FALLOC_FL_KEEP_SIZE of linux/falloc.h).
const keepSize = 1

// allocateBlocks gives the first n bytes of a file their blocks.
func allocateBlocks(f *os.File, n int64) error {
	return syscall.Fallocate(int(f.Fd()), 0, 0, n)
}

// allocateBeyond gives n bytes from an offset on their blocks, and leaves the
// file's size as it is.
func allocateBeyond(f *os.File, from, n int64) error {
	return syscall.Fallocate(int(f.Fd()), keepSize, from, n)
}
