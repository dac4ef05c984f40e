package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/septemberai/orch/brain"
)

// appendFile copies a file, in the kernel where it can.
func appendFile(to *os.File, path string) (int64, error) {
	from, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	return io.Copy(to, from)
}

// replace is brain.Replace of a file whose directories may not exist.
func replace(path string, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := brain.Replace(path, write); err != nil {
		return err
	}
	// The names on the way to it, too, because they may be new.
	dir = filepath.Dir(dir)
	return errors.Join(brain.SyncDir(dir), brain.SyncDir(filepath.Dir(dir)))
}
