package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// brainVersion is the version of the schema, stored in user_version.
const brainVersion = 1

// schema of the brain. Times are Unix nanoseconds.
const schema = `
CREATE TABLE IF NOT EXISTS memories (
  id INTEGER PRIMARY KEY AUTOINCREMENT, input TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, host TEXT NOT NULL,
  started_at INTEGER NOT NULL, ended_at INTEGER) STRICT;
PRAGMA user_version = 1;`

// Brain is the engine's memory: one SQLite file, one writer.
type Brain struct {
	path   string
	file   os.FileInfo // the open file, to notice that it was replaced
	writer *sql.DB     // one connection: SQLite has one writer anyway
	reader *sql.DB     // query-only; a long export does not block writes or probes
	run    int64       // this process's row in runs
	// suspect is set by a failed write and cleared by a successful one.
	suspect atomic.Bool
}

// OpenBrain opens the brain at path, or creates it, and records the start of this process.
// The caller holds the brain's lock.
func OpenBrain(ctx context.Context, path string) (_ *Brain, err error) {
	b := &Brain{path: path}
	defer func() {
		if err != nil {
			_ = b.closeDBs()
			err = explain(path, err)
		}
	}()
	// FULL: a commit is on disk before it is acknowledged. NORMAL would survive kill -9 but
	// not a power failure. Temporary tables stay in memory, because a container's root is
	// read-only and has no /tmp.
	b.writer, err = openPool(path, 1, "immediate", "journal_mode(WAL)", "synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	b.reader, err = openPool(path, 2, "deferred", "query_only(1)")
	if err != nil {
		return nil, err
	}
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	if b.file, err = os.Stat(path); err != nil {
		return nil, err
	}
	return b, nil
}

// openPool opens a pool of at most n connections with the given txlock and pragmas. Nothing
// accesses the disk before the first statement.
func openPool(path string, n int, txlock string, pragmas ...string) (*sql.DB, error) {
	q := url.Values{
		"_pragma": append([]string{"busy_timeout(5000)", "temp_store(MEMORY)", "cache_size(-1024)"}, pragmas...),
		"_txlock": {txlock},
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(1)
	return db, nil
}

// begin creates the schema and writes this process's row in one commit, so that the boot
// waits for as few disk syncs as possible.
func (b *Brain) begin(ctx context.Context) error {
	tx, err := b.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // no-op after Commit
	var version int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	switch {
	case version > brainVersion:
		return fmt.Errorf("written by a newer engine (schema %d, this one knows %d)", version, brainVersion)
	case version < brainVersion:
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return err
		}
	}
	host, _ := os.Hostname()
	res, err := tx.ExecContext(ctx, `INSERT INTO runs (pid, host, started_at) VALUES (?, ?, ?)`,
		os.Getpid(), host, time.Now().UnixNano())
	if err != nil {
		return err
	}
	if b.run, err = res.LastInsertId(); err != nil {
		return err
	}
	return tx.Commit()
}

// explain turns SQLite's errors into messages that an operator can act on.
func explain(path string, err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
			return fmt.Errorf("the brain %s is corrupt or not a brain; restore it from a backup: %w", path, err)
		case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
			return fmt.Errorf("the brain %s cannot be opened for writing; check that its volume is mounted and belongs to the engine's user: %w", path, err)
		}
	}
	return fmt.Errorf("open the brain %s: %w", path, err)
}

// Remember stores one input. When it returns, the input is on disk.
func (b *Brain) Remember(ctx context.Context, input string) (int64, error) {
	res, err := b.write(ctx, `INSERT INTO memories (input, at) VALUES (?, ?)`, input, time.Now().UnixNano())
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// write runs one statement that changes the brain. It is not cancelled when the caller
// disconnects: that would waste the work, and make a healthy brain look broken.
func (b *Brain) write(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	res, err := b.writer.ExecContext(ctx, query, args...)
	b.suspect.Store(err != nil)
	return res, err
}

// Probe reports whether the brain works: the file is still the one that was opened, a read
// works, and, if the last write failed, a write works again. In the normal case it causes
// no disk sync.
func (b *Brain) Probe(ctx context.Context) error {
	now, err := os.Stat(b.path)
	if err != nil {
		return err
	}
	if !os.SameFile(b.file, now) {
		return errors.New("the brain's file was replaced while the engine was running")
	}
	var one int
	if err := b.reader.QueryRowContext(ctx, `SELECT 1 FROM runs WHERE id = ?`, b.run).Scan(&one); err != nil {
		return err
	}
	if b.suspect.Load() {
		_, err = b.write(ctx, `UPDATE runs SET ended_at = NULL WHERE id = ?`, b.run)
	}
	return err
}

// Close records the end of this process, moves the write-ahead log into the file and closes
// it. Nothing may be written afterwards.
func (b *Brain) Close(ctx context.Context) error {
	_, err := b.write(ctx, `UPDATE runs SET ended_at = ? WHERE id = ?`, time.Now().UnixNano(), b.run)
	_, err2 := b.write(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	if err = errors.Join(err, err2, b.closeDBs()); err != nil {
		return fmt.Errorf("close the brain: %w", err)
	}
	return nil
}

func (b *Brain) closeDBs() error {
	var errs []error
	// The writer is closed last: SQLite removes the log with the last connection, which a
	// query-only connection cannot do.
	for _, db := range []*sql.DB{b.reader, b.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}
