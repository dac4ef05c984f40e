package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"modernc.org/sqlite" // also registers the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// checkTimeout limits the check of the file at the start, which reads the whole file.
const checkTimeout = 3 * time.Second

// sqliteReaders is how many lists are read concurrently. The write-ahead log lets readers
// run beside the writer.
const sqliteReaders = 4

var sqliteDialect = &dialect{
	name:       "sqlite",
	jsonObject: "json_object",
	time:       func(t time.Time) any { return t.UnixMicro() },
	insert: func(ctx context.Context, d *database, query string, args ...any) (int64, error) {
		var id int64
		err := d.transaction(ctx, func(ctx context.Context, tx *sql.Tx) error {
			res, err := tx.ExecContext(ctx, query, args...)
			if err != nil {
				return err
			}
			id, err = res.LastInsertId()
			return err
		})
		if err != nil {
			return 0, err
		}
		return id, nil
	},
	// The file is local: an error at the start will not disappear by itself.
	operator: func(error) bool { return true },
	damaged: func(err error) bool {
		var e *sqlite.Error
		return errors.As(err, &e) && (e.Code()&0xff == sqlite3.SQLITE_CORRUPT || e.Code()&0xff == sqlite3.SQLITE_NOTADB)
	},
	unsent:     func(error) bool { return false },
	turnedAway: func(error) bool { return false },
}

// openSQLite opens the file in the rest of a sqlite:// URL.
func openSQLite(rest string, log hclog.Logger) (_ *database, err error) {
	path, err := url.PathUnescape(rest)
	if err != nil || path == "" || strings.ContainsAny(rest, "?#\x00") {
		return nil, fmt.Errorf("audit: %q is not a file name: the URL must be sqlite://FILE", rest)
	}
	d := newDatabase(sqliteDialect, log)
	d.disk = &disk{log: log}
	if !filepath.IsAbs(path) {
		if wd, err := os.Getwd(); err == nil && wd == "/" {
			log.Warn("the audit log's file is relative to the working directory, which is /: set its full path, as in sqlite:///var/lib/orch/audit.db", "file", "/"+path)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("audit: open %s: %w", path, err), d.close())
		}
	}()
	if d.disk.path, err = makeFile(path); err != nil {
		return nil, err
	}
	if d.disk.held, err = lockFile(d.disk.path + ".lock"); err != nil {
		return nil, err
	}
	if d.disk.main, err = os.Stat(d.disk.path); err != nil {
		return nil, err
	}
	d.disk.keepReserve()
	// FULL: a commit is on disk before the change of its row is made. NORMAL survives kill
	// -9 but not a power failure, and would leave changes without a row. One connection:
	// SQLite allows one writer anyway.
	if d.writer, err = sqlitePool(d.disk.path, 1, "immediate", "journal_mode(WAL)", "synchronous(FULL)"); err != nil {
		return nil, err
	}
	d.group = newGroup(d.writer)
	if d.reader, err = sqlitePool(d.disk.path, sqliteReaders+1, "deferred", "query_only(1)"); err != nil {
		return nil, err
	}
	return d, nil
}

// makeFile creates the file and its directory with access only for this user, and returns
// the file's real path, because two names of one file must share one lock.
func makeFile(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	// SQLite gives the files of its log the mode of this file.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w: set a file that the service may write, as in sqlite:///var/lib/orch/audit.db", err)
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// lockFile takes an exclusive flock on a file beside the database, or returns [ErrInUse] at
// once. The kernel releases it when the process ends in any way. The file is never removed,
// because then two processes could lock two files of the same name. The database file
// itself cannot be used: closing any of its descriptors would release SQLite's own locks.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		holder := make([]byte, 64)
		n, _ := f.ReadAt(holder, 0)
		return nil, fmt.Errorf("%w; held by %s", ErrInUse, strings.TrimSpace(string(holder[:n])))
	}
	// The content is only a hint for the error above; the lock is the flock.
	host, _ := os.Hostname()
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "pid %d on %.40s\n", os.Getpid(), host), 0)
	}
	return f, nil
}

// sqlitePool opens a pool of at most n connections with the given txlock for transactions.
// Nothing accesses the disk before the first statement.
func sqlitePool(path string, n int, txlock string, pragmas ...string) (*sql.DB, error) {
	// The wait for another process's lock must end before the call's time limit.
	wait := fmt.Sprintf("busy_timeout(%d)", (CallTimeout - time.Second).Milliseconds())
	q := url.Values{"_pragma": append([]string{wait}, pragmas...), "_txlock": {txlock}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}
