package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// reserveBytes is the disk space that is reserved beside a SQLite file, for the rows of
	// operations that free disk space: about 100 destroys, each of which takes 40 KiB of
	// SQLite's log.
	reserveBytes = 4 << 20
	// leastPiece is the smallest part of the reserve that is worth reclaiming.
	leastPiece = 64 << 10
)

// disk is the files of a SQLite database. Its methods do nothing on nil, which is the value
// for PostgreSQL.
type disk struct {
	path string
	log  hclog.Logger
	held *os.File // the lock file, open as long as the process runs
	mu   sync.Mutex
	// main and wal are the files that were opened. A file that was removed or replaced is
	// detected by them: SQLite would continue to write to a file that nobody can read.
	main, wal os.FileInfo
	// pinned keeps SQLite's log the same file, because the last connection removes it.
	pinned *sql.Conn
	// given reports that the reserve was released. mu is held while that changes.
	given atomic.Bool
}

func (d *disk) walPath() string     { return d.path + "-wal" }
func (d *disk) reservePath() string { return d.path + ".reserve" }

// pin keeps a connection open, and records its files.
func (d *disk) pin(ctx context.Context, pool *sql.DB) error {
	if d == nil || d.pinned != nil {
		return nil
	}
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	var version int
	err = conn.QueryRowContext(ctx, `SELECT MAX(version) FROM audit_migrations`).Scan(&version)
	if err == nil {
		d.wal, err = os.Stat(d.walPath())
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	d.pinned = conn
	return nil
}

func (d *disk) unpin() error {
	if d == nil || d.pinned == nil {
		return nil
	}
	return d.pinned.Close()
}

func (d *disk) unlock() error {
	if d == nil || d.held == nil {
		return nil
	}
	return d.held.Close()
}

// same returns an error if a file was removed or replaced.
func (d *disk) same() error {
	if d == nil {
		return nil
	}
	for path, opened := range map[string]os.FileInfo{d.path: d.main, d.walPath(): d.wal} {
		if opened == nil {
			continue
		}
		if now, err := os.Stat(path); err != nil || !os.SameFile(opened, now) {
			return fmt.Errorf("%s was removed or replaced while it was in use: put the file back, or restart the service to use the current file", path)
		}
	}
	return nil
}

// has returns an error for an ordinary write while the reserve is released and there is no
// space to restore it.
func (d *disk) has(may room) error {
	if d == nil || may == reserved || !d.given.Load() {
		return nil
	}
	if d.free() >= 2*reserveBytes && d.keepReserve() {
		return nil
	}
	return fmt.Errorf("the disk of %s is full: only operations that free space are possible until %d MiB are free", d.path, 2*reserveBytes>>20)
}

// keepReserve creates the reserve if it is missing, and reports whether it exists.
func (d *disk) keepReserve() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if info, err := os.Stat(d.reservePath()); err == nil && info.Size() >= reserveBytes {
		d.given.Store(false)
		return true
	}
	err := allocate(d.reservePath(), reserveBytes)
	d.given.Store(noSpace(err))
	if err != nil {
		_ = os.Remove(d.reservePath())
		d.log.Warn("cannot reserve disk space beside the audit log's file: if the disk becomes full, nothing can be destroyed", "file", d.reservePath(), "bytes", reserveBytes, "error", err)
		return false
	}
	return true
}

// giveUp removes the reserve, and reports whether there was one.
func (d *disk) giveUp() bool { return d.release(func() {}) }

// handOver is like giveUp, but moves the reserve piece by piece to the space beyond the end
// of SQLite's log. So a process that is filling the disk can take at most a piece of it.
func (d *disk) handOver() {
	d.release(func() {
		wal, at := d.openLog()
		if wal == nil {
			return
		}
		defer func() { _ = wal.Close() }()
		for left := int64(reserveBytes - leastPiece); left >= 0 && os.Truncate(d.reservePath(), left) == nil; left -= leastPiece {
			if allocateBeyond(wal, at, leastPiece) == nil {
				at += leastPiece
			}
		}
	})
}

// release releases the reserve, unless that has happened, after calling first.
func (d *disk) release(first func()) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.given.Swap(true) {
		return false
	}
	d.log.Error("the audit log's disk is full: using the reserve, and only for operations that free space", "file", d.path, "bytes", reserveBytes)
	first()
	return os.Remove(d.reservePath()) == nil
}

// extend allocates free disk space beyond the end of SQLite's log, up to the size of the
// reserve, for the case that the reserve was released before the log existed. It allocates
// as much of it as possible.
func (d *disk) extend() {
	wal, end := d.openLog()
	if wal == nil {
		return
	}
	defer func() { _ = wal.Close() }()
	for piece := int64(reserveBytes); piece >= leastPiece; piece /= 2 {
		if allocateBeyond(wal, end, piece) == nil {
			return
		}
	}
}

// openLog opens SQLite's log, and returns its size; nil: it does not exist yet.
func (d *disk) openLog() (wal *os.File, end int64) {
	wal, err := os.OpenFile(d.walPath(), os.O_RDWR, 0)
	if err != nil {
		return nil, 0
	}
	info, err := wal.Stat()
	if err != nil {
		_ = wal.Close()
		return nil, 0
	}
	return wal, info.Size()
}

// free returns the free space of the disk, in bytes.
func (d *disk) free() int64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.path, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * int64(fs.Bsize)
}

// isFull reports whether an error of SQLite means that the disk is full.
func (d *disk) isFull(err error) bool {
	var e *sqlite.Error
	if d == nil || !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff { // the upper bits name the system call
	case sqlite3.SQLITE_FULL:
		return true
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN: // for the index of its log, and for an exceeded quota
		return e.Code() == sqlite3.SQLITE_IOERR_WRITE || d.free() < leastPiece
	}
	return false
}

// allocate creates a file of n bytes with all its disk blocks.
func allocate(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = allocateBlocks(f, n)
	if errors.Is(err, errors.ErrUnsupported) {
		if _, err = f.WriteAt(make([]byte, n), 0); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
