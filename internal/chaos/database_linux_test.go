package chaos

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// failOver creates a standby of the audit log's database and promotes it. The old server
// keeps running until the fault ends, but accepts no writes.
func (in *injector) failOver() error {
	r := in.rig
	if err := r.spare.Follow(r.pg); err != nil {
		return err
	}
	if err := r.pg.FailOver(r.spare); err != nil {
		return err
	}
	r.pg, r.spare = r.spare, r.pg
	return nil
}

func (in *injector) filling() string { return filepath.Join(in.rig.disk, "of-somebody-else") }

// fill uses up the disk space of the audit log's database.
func (in *injector) fill() (err error) {
	f, err := os.OpenFile(in.filling(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for taken, size := int64(0), int64(1<<30); size > 0; {
		switch err := syscall.Fallocate(int(f.Fd()), 0, taken, size); {
		case err == nil:
			taken += size
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case !errors.Is(err, syscall.EINTR):
			return err
		}
	}
	return nil
}

// empty frees the disk space. The server ends by itself if it cannot write its log.
func (in *injector) empty() error {
	if err := os.Remove(in.filling()); err != nil {
		return err
	}
	if in.rig.pg.Exec("SELECT 1") == nil {
		return nil
	}
	in.rig.pg.Halt()
	return in.rig.pg.Start()
}
