// Package audit keeps what happened: an append-only log of every change and its
// outcome, in SQL.
//
// The row of a change is begun before the change is made and completed after
// it, so that a crash leaves a row that says "interrupted" and never no row. An
// embedded SQLite file serves exactly one replica, PostgreSQL any number.
package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Errors that callers branch on. Each is wrapped with what happened.
var (
	// ErrUnavailable: the database cannot be reached or does not answer in time;
	// whether a row was written is not known.
	ErrUnavailable = errors.New("audit: database unavailable")
	// ErrNotFound: there is no row of that id to complete.
	ErrNotFound = errors.New("audit: no such row")
	// ErrCursor: the cursor is not one that [Log.Entries] gave.
	ErrCursor = errors.New("audit: not a cursor of the audit log")
	// ErrInUse: another process has this SQLite file open.
	ErrInUse = errors.New("audit: the database is used by another process, and SQLite serves exactly one replica (use PostgreSQL for more)")
	// ErrUnusable: the URL cannot be read, or what it names is no database that can
	// be written; only an operator can mend it.
	ErrUnusable = errors.New("audit: the database cannot be used")
)

// unusable is an error that is [ErrUnusable] too, in its own words.
type unusable struct{ error }

func (u unusable) Unwrap() error        { return u.error }
func (u unusable) Is(target error) bool { return target == ErrUnusable }

// Options of [Open].
type Options struct {
	// RetentionDays is how long a row is kept, in days of 24 hours; 0 keeps
	// every row indefinitely.
	RetentionDays int
	// Log gets what the background work has to say; required.
	Log hclog.Logger
}

// Log is the audit log. Its methods may be called from any goroutine.
type Log struct {
	db      *database
	opts    Options
	denials denials
	doubts  doubts
}

// Open opens the database that url names and brings its schema up:
// "sqlite:///dir/audit.db" (absolute), "sqlite://dir/audit.db" (relative to the
// working directory) or "postgres://...". The directory and file of a SQLite
// database are made when they are missing.
//
// It fails for what only an operator can mend: a URL that cannot be read, a file
// that is damaged or cannot be written (both [ErrUnusable]) or is in use
// ([ErrInUse]), a login that is refused, a schema of a newer version. A PostgreSQL server that is merely away is no
// error, so that a replica that starts during its outage still serves what
// needs no audit: each call then returns [ErrUnavailable] until it is back. No
// error shows the URL's password.
func Open(ctx context.Context, url string, o Options) (*Log, error) {
	db, err := openDatabase(url, o.Log)
	if errors.Is(err, ErrInUse) {
		return nil, err
	}
	if err != nil {
		return nil, unusable{err}
	}
	l := &Log{db: db, opts: o}
	if err := db.prepare(ctx); err != nil {
		if !db.away(err) {
			if db.disk != nil {
				err = fmt.Errorf("%s: %w", db.disk.path, err)
			}
			return nil, errors.Join(err, db.close())
		}
		o.Log.Warn("the audit database is away, changes are refused until it is back", "error", err)
	}
	return l, nil
}

// Run does the background work until ctx ends: it writes the counted denials
// every few seconds, completes rows whose beginning was not answered, and deletes
// what is older than the retention. When it
// returns, the last denials are written, if the database was there.
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

// Ping says whether rows can be read, and whether the next change can be written
// down: as the last one was, or, when that was seconds ago, as a row shows that is
// written and deleted at once. [ErrUnavailable] if not.
func (l *Log) Ping(ctx context.Context) error { return l.db.ping(ctx) }

// pause waits for d and says whether ctx is still alive then.
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
