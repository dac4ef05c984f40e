package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// callTimeout bounds one call: far above what a healthy database needs, short
// enough that a hung one yields 503.
const callTimeout = 5 * time.Second

// database is a SQL database of either kind.
type database struct {
	*dialect
	writer *sql.DB
	reader *sql.DB

	path string      // SQLite: the file
	file os.FileInfo // SQLite: the file that was opened, to notice that it was replaced
	held *os.File    // SQLite: the lock on it, for the life of the process

	// secrets are the words of the URL that no error may show.
	secrets []string
	// ready says that the schema is up; preparing is held by who brings it up.
	ready     atomic.Bool
	preparing chan struct{}
	// suspect is set by a write that failed and cleared by one that did not.
	suspect atomic.Bool
}

// dialect is what the two kinds of database say differently.
type dialect struct {
	name       string               // the folder of its migrations
	jsonObject string               // the function that makes a JSON object of names and values
	forUpdate  string               // ends a SELECT of a row that is about to be changed
	lockTx     string               // waits for the lock %d until the transaction ends; empty where writers take turns anyway
	tryLockTx  string               // the same without waiting: selects whether it was got
	time       func(time.Time) any  // a time as an argument
	insert     insert               // runs an INSERT INTO audit_entries and returns its id
	operator   func(err error) bool // whether only an operator can mend it
	unsent     func(err error) bool // whether a statement surely was not carried out
	turnedAway func(err error) bool // whether nothing was carried out, for the connection led to a server that takes no writes
}

type insert func(ctx context.Context, db *sql.DB, query string, args ...any) (int64, error)

// openDatabase opens the database of a URL; whether it can be reached is not
// known yet.
func openDatabase(url string) (*database, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case ok && scheme == "sqlite":
		return openSQLite(rest)
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return openPostgres(url)
	}
	// Not echoed: what is wrong about it may be that a password stands first.
	return nil, errors.New("audit: the database URL must begin with sqlite:// or postgres://")
}

func newDatabase(d *dialect) *database {
	return &database{dialect: d, preparing: make(chan struct{}, 1)}
}

func (d *database) close() error {
	var errs []error
	// The writer goes last: SQLite removes its log with the last connection, and
	// a query-only one cannot.
	if d.reader != nil && d.reader != d.writer {
		errs = append(errs, d.reader.Close())
	}
	if d.writer != nil {
		errs = append(errs, d.writer.Close())
	}
	if d.held != nil {
		errs = append(errs, d.held.Close())
	}
	return errors.Join(errs...)
}

// call runs one call with the database's time limit, after the schema is up.
func (d *database) call(ctx context.Context, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !d.ready.Load() {
		if err := d.prepare(ctx); err != nil {
			return err
		}
	}
	return d.explain(do(ctx))
}

// write is call for one that changes something. A server that takes no writes
// any more is left, with all connections to it, and another one is asked.
func (d *database) write(ctx context.Context, do func(ctx context.Context) error) error {
	err := d.call(ctx, func(ctx context.Context) error {
		err := do(ctx)
		for left := postgresConns; left > 0 && err != nil && d.turnedAway(err) && ctx.Err() == nil; left-- {
			d.dropIdle()
			err = do(ctx)
		}
		return err
	})
	d.suspect.Store(errors.Is(err, ErrUnavailable))
	return err
}

// dropIdle closes the connections that nobody uses; what follows makes new ones.
func (d *database) dropIdle() {
	d.writer.SetMaxIdleConns(0)
	d.writer.SetMaxIdleConns(postgresConns)
}

// transact is write for more than one statement: all of them or none.
func (d *database) transact(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) error) error {
	return d.write(ctx, func(ctx context.Context) error { return d.transaction(ctx, do) })
}

func (d *database) transaction(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // no-op after Commit
	if err := do(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// ping reads, and writes too if the last write failed: a full disk and a standby
// answer reads.
func (d *database) ping(ctx context.Context) error {
	err := d.call(ctx, func(ctx context.Context) error {
		if err := d.sameFile(); err != nil {
			return err
		}
		var version int
		return d.reader.QueryRowContext(ctx, `SELECT MAX(version) FROM audit_migrations`).Scan(&version)
	})
	if err != nil || !d.suspect.Load() {
		return err
	}
	return d.write(ctx, func(ctx context.Context) error {
		_, err := d.writer.ExecContext(ctx, `UPDATE audit_migrations SET version = version WHERE version = 1`)
		return err
	})
}

// explain marks an error of the database. Every failed statement counts as
// unavailable: they are ours and well formed, so what fails is the way there,
// the server, or its disk.
func (d *database) explain(err error) error {
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, d.redact(err))
}

// redact takes the URL's secrets out of an error's text.
func (d *database) redact(err error) error {
	text := err.Error()
	for _, secret := range d.secrets {
		text = strings.ReplaceAll(text, secret, "xxxxx")
	}
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}
