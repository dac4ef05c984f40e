// Package audit is the audit log: an append-only log of every change and its outcome, in
// SQL.
//
// The row of a change is written before the change is made and completed after it. A crash
// in between leaves a row with the outcome "interrupted", but never a change without a
// row. An embedded SQLite file serves exactly one replica, PostgreSQL any number.
package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Errors that callers distinguish. Each one is wrapped with its cause.
var (
	// ErrUnavailable: the database cannot be reached or does not respond in time. It is
	// unknown whether a row was written.
	ErrUnavailable = errors.New("audit: database unavailable")
	// ErrDenied: the database responds, but refuses the login or a right, and only an
	// operator can mend that; always together with ErrUnavailable.
	ErrDenied = errors.New("audit: the database refused the service")
	// ErrNotFound: no row has this id.
	ErrNotFound = errors.New("audit: no such row")
	// ErrCursor: the cursor is not from [Log.Entries].
	ErrCursor = errors.New("audit: this is not a cursor of the audit log")
	// ErrInUse: another process has this SQLite file open.
	ErrInUse = errors.New("audit: another process has opened the database, and SQLite serves exactly one replica; use PostgreSQL for more")
	// ErrUnusable: the URL is invalid, or it does not name a database that can be written.
	// Only an operator can repair that.
	ErrUnusable = errors.New("audit: the database cannot be used")
)

// unusable makes an error match [ErrUnusable] without changing its text.
type unusable struct{ error }

func (u unusable) Unwrap() error        { return u.error }
func (u unusable) Is(target error) bool { return target == ErrUnusable }

// Options are the options of [Open].
type Options struct {
	// RetentionDays is how long rows are kept, in days of 24 hours; 0: indefinitely.
	RetentionDays int
	// Log receives the messages of the background work; required.
	Log hclog.Logger
	// Observe is told about every call of the database: how long its caller waited, and its
	// error. nil: nobody.
	Observe func(took time.Duration, err error)
}

// Log is the audit log. Its methods are safe for concurrent use.
type Log struct {
	db      *database
	opts    Options
	denials denials
	doubts  doubts
}

// Open opens the database of a URL and migrates its schema: "sqlite:///dir/audit.db"
// (absolute), "sqlite://dir/audit.db" (relative to the working directory) or
// "postgres://...". It creates the directory and file of a SQLite database if they are
// missing.
//
// It returns an error for what only an operator can repair: an invalid URL, a file that is
// damaged or not writable (both [ErrUnusable]) or in use ([ErrInUse]), a refused login, or
// the schema of a newer version. A PostgreSQL server that cannot be reached is no error, so
// that a replica that starts during its outage still serves calls that need no audit log.
// Until the server is back, each call returns [ErrUnavailable]. No error contains the URL's
// password.
func Open(ctx context.Context, url string, o Options) (*Log, error) {
	db, err := openDatabase(url, o.Log)
	if errors.Is(err, ErrInUse) {
		return nil, err
	}
	if err != nil {
		return nil, unusable{err}
	}
	l := &Log{db: db, opts: o}
	db.observe = o.Observe
	if err := db.prepare(ctx); err != nil {
		if !db.away(err) {
			if db.disk != nil {
				err = fmt.Errorf("%s: %w", db.disk.path, err)
			}
			return nil, errors.Join(err, db.close())
		}
		o.Log.Warn("the audit database is unavailable, so changes are refused until it is back", "error", err)
	}
	return l, nil
}

// Run does the background work until ctx ends: it writes the counted denials every few
// seconds, completes rows in doubt, and deletes rows that are older than the retention.
// Before it returns it writes the last denials, if the database is available.
func (l *Log) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { l.flushDenials(ctx) })
	work.Go(func() { l.settleDoubts(ctx) })
	if l.opts.RetentionDays > 0 {
		work.Go(func() { l.retain(ctx) })
	}
	work.Wait()
}

// Close closes the database. Call it after [Log.Run] has returned.
func (l *Log) Close() error { return l.db.close() }

// Ping returns nil if rows can be read and the next change can be recorded. It concludes
// the latter from the last write or, if that was more than some seconds ago, from a test
// row that it writes and deletes. Otherwise it returns [ErrUnavailable].
func (l *Log) Ping(ctx context.Context) error { return l.db.ping(ctx) }

// pause waits for d, and reports whether ctx is still active afterwards.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
