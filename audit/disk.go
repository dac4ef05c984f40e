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
	// reserveBytes is the disk space that is kept beside a SQLite file for the rows
	// of what makes room: about 100 destroys, each of which takes 40 KiB of SQLite's log.
	reserveBytes = 4 << 20
	// leastPiece is the least of it that is worth taking back.
	leastPiece = 64 << 10
)

// disk is a SQLite database's files. Its methods do nothing on nil, with
// PostgreSQL.
type disk struct {
	path string
	log  hclog.Logger
	held *os.File // the lock, for the life of the process
	mu   sync.Mutex
	// main and wal are the files that were opened, to notice that one was removed
	// or replaced: SQLite would write on into a file that nobody can read.
	main, wal os.FileInfo
	// pinned keeps SQLite's log the same file: the last connection removes it.
	pinned *sql.Conn
	// given says that the reserve was given up; mu is held while that changes.
	given atomic.Bool
}

func (d *disk) walPath() string     { return d.path + "-wal" }
func (d *disk) reservePath() string { return d.path + ".reserve" }

// pin keeps a connection, and notes the files that it has.
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

// same fails when a file was removed or replaced.
func (d *disk) same() error {
	if d == nil {
		return nil
	}
	for path, opened := range map[string]os.FileInfo{d.path: d.main, d.walPath(): d.wal} {
		if opened == nil {
			continue
		}
		if now, err := os.Stat(path); err != nil || !os.SameFile(opened, now) {
			return fmt.Errorf("%s was removed or replaced while it was in use: put the file back, or restart the service to go on with what is there", path)
		}
	}
	return nil
}

// has fails for an ordinary write while the reserve is given up and there is no
// room to restore it.
func (d *disk) has(may room) error {
	if d == nil || may == reserved || !d.given.Load() {
		return nil
	}
	if d.free() >= 2*reserveBytes && d.keepReserve() {
		return nil
	}
	return fmt.Errorf("the disk of %s is full: only what makes room is done, until %d MiB are free", d.path, 2*reserveBytes>>20)
}

// keepReserve makes the reserve, unless it is there, and says whether it is.
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
		d.log.Warn("there is no reserve beside the audit log's file: when the disk is full, nothing can be destroyed", "file", d.reservePath(), "bytes", reserveBytes, "error", err)
		return false
	}
	return true
}

// giveUp removes the reserve, and says whether there was one.
func (d *disk) giveUp() bool { return d.release(func() {}) }

// handOver is giveUp for SQLite's log: it takes the space, beyond its end, a piece after
// another. Whoever filled the disk and still writes gets a piece where it is faster, and
// not all of it.
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

// release gives the reserve up, unless it is, after something was done with its file.
func (d *disk) release(first func()) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.given.Swap(true) {
		return false
	}
	d.log.Error("the audit log's disk is full: its reserve is given up, and only what makes room is done", "file", d.path, "bytes", reserveBytes)
	first()
	return os.Remove(d.reservePath()) == nil
}

// extend takes up to the reserve's space for SQLite's log, beyond its end, of what is free:
// where the reserve was given up before there was a log. What cannot be had is left.
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

// openLog opens SQLite's log, and says where it ends; nil: it is not there yet.
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

// free is how much of the disk may still be used, in bytes.
func (d *disk) free() int64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.path, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * int64(fs.Bsize)
}

// isFull says of SQLite's error that the disk is full.
func (d *disk) isFull(err error) bool {
	var e *sqlite.Error
	if d == nil || !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff { // the rest says which call it was
	case sqlite3.SQLITE_FULL:
		return true
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN: // as it says of its log's index, and beyond a quota
		return e.Code() == sqlite3.SQLITE_IOERR_WRITE || d.free() < leastPiece
	}
	return false
}

// allocate makes a file of n bytes that has its blocks.
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
