package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
)

// readJSON reports whether there is a file. It follows no link and waits for no FIFO, because
// it also reads in volumes.
func readJSON(path string, to any) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		return true, err
	}
	text, err := io.ReadAll(f)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	return true, err
}

func writeJSON(path string, from any, write func(path string, text []byte) error) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return write(path, text)
}

// writeFile writes a file that is there after a crash of the machine completely, or not at
// all. Unlike brain.Replace it leaves no files of other names, which could get into a brain.
func writeFile(path string, text []byte) error {
	if err := write(path, text, (*os.File).Sync); err != nil {
		return err
	}
	return brain.SyncDir(filepath.Dir(path))
}

// writeVolatile is writeFile for what need not outlive the machine, but a killed process.
func writeVolatile(path string, text []byte) error {
	return write(path, text, func(*os.File) error { return nil })
}

func write(path string, text []byte, sync func(*os.File) error) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, sync(f), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	return err
}
