package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/link"
)

// CallTimeout limits one call: far more than a healthy database needs, and short enough to
// return 503 for one that hangs.
const CallTimeout = 5 * time.Second

// minSilence is the minimum duration of a call whose timeout counts as an unresponsive
// server, because some callers have a shorter timeout.
const minSilence = CallTimeout * 9 / 10

// database is a SQLite or PostgreSQL database.
type database struct {
	*dialect
	writer *sql.DB
	reader *sql.DB

	log   hclog.Logger
	disk  *disk  // SQLite: the files; nil with PostgreSQL
	group *group // SQLite: commits concurrent changes together; nil with PostgreSQL

	// secrets are the parts of the URL, and the passwords in its files, that no error may
	// contain.
	secrets   []string
	secretsMu sync.Mutex
	// ready reports that the schema is up to date. The caller that migrates it holds
	// preparing.
	ready     atomic.Bool
	preparing chan struct{}
	state     state
	// circuit refuses calls while the server does not respond; nil with SQLite.
	circuit *link.Circuit
	observe func(took time.Duration, err error) // nil: nobody
}

// dialect is what differs between SQLite and PostgreSQL.
type dialect struct {
	name       string               // name of the directory of its migrations
	jsonObject string               // function that builds a JSON object from names and values
	forUpdate  string               // suffix of a SELECT whose row is to be changed
	lockTx     string               // waits for lock %d, which lasts until the transaction ends; empty if writers exclude each other anyway
	tryLockTx  string               // the same without waiting: selects whether the lock was taken
	time       func(time.Time) any  // converts a time to an argument
	insert     insert               // runs an INSERT INTO audit_entries, and returns the row's id
	operator   func(err error) bool // whether only an operator can repair it
	unsent     func(err error) bool // whether the statement was certainly not executed
	damaged    func(err error) bool // whether the file is damaged, or not a database
	turnedAway func(err error) bool // whether nothing was executed because the server takes no writes
}

type insert func(ctx context.Context, d *database, query string, args ...any) (int64, error)

// openDatabase opens the database of a URL without checking that it can be reached.
func openDatabase(url string, log hclog.Logger) (*database, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case ok && scheme == "sqlite":
		return openSQLite(rest, log)
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return openPostgres(url, log)
	}
	// The URL is not in the error, because what precedes the scheme may be a password.
	return nil, errors.New("audit: the database URL must begin with sqlite:// or postgres://")
}

func newDatabase(d *dialect, log hclog.Logger) *database {
	return &database{dialect: d, log: log, preparing: make(chan struct{}, 1)}
}

func (d *database) close() error {
	var errs []error
	d.circuit.Close()
	d.group.close()
	// The writer is closed last: SQLite removes its log with the last connection, which a
	// query-only connection cannot do.
	errs = append(errs, d.disk.unpin())
	if d.reader != nil && d.reader != d.writer {
		errs = append(errs, d.reader.Close())
	}
	if d.writer != nil {
		errs = append(errs, d.writer.Close())
	}
	return errors.Join(append(errs, d.disk.unlock())...)
}

// call runs one call within the database's time limit, after the schema was migrated. It
// fails at once while the server is known not to respond.
func (d *database) call(ctx context.Context, do func(ctx context.Context) error) error {
	began := time.Now()
	err := d.callOnce(ctx, do)
	if d.observe != nil {
		d.observe(time.Since(began), err)
	}
	return err
}

func (d *database) callOnce(ctx context.Context, do func(ctx context.Context) error) error {
	if err := d.circuit.Pass(link.FailFast(ctx)); err != nil {
		return d.explain(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	var err error
	if !d.ready.Load() {
		err = d.prepare(ctx)
	}
	if err == nil {
		err = d.explain(do(ctx))
	}
	switch {
	case err == nil || sqlState(err) != "":
		d.circuit.Heard(true)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(began) >= minSilence:
		d.circuit.Silent(began)
	}
	return err
}

// room is which part of the disk a write may use.
type room bool

const (
	// ordinary: all but the reserve.
	ordinary room = false
	// reserved: the reserve as well, for what frees disk space and for changes in progress.
	reserved room = true
)

// write is like call, for a call that changes data. If the server no longer takes writes,
// all connections to it are closed, and the call is retried on another one. A write to a
// file that no longer has the database's name is an error.
func (d *database) write(ctx context.Context, may room, do func(ctx context.Context) error) error {
	err := d.call(ctx, func(ctx context.Context) error {
		if err := errors.Join(d.disk.same(), d.disk.has(may)); err != nil {
			return err
		}
		err := do(ctx)
		for left := postgresConns; left > 0 && err != nil && d.turnedAway(err) && ctx.Err() == nil; left-- {
			d.dropIdle()
			err = do(ctx)
		}
		if d.disk.isFull(err) {
			d.disk.handOver() // or wait until another call has done it
			if may == reserved {
				err = do(ctx)
			}
		}
		return errors.Join(err, d.disk.same())
	})
	// A cancelled call shows nothing about the database. A write that used the reserve, or
	// space in a row's page, shows nothing about the next change.
	if !errors.Is(err, context.Canceled) && (err != nil || may == ordinary) {
		d.learn(err)
	}
	return err
}

// dropIdle closes idle connections, so that later calls open new ones.
func (d *database) dropIdle() {
	d.writer.SetMaxIdleConns(0)
	d.writer.SetMaxIdleConns(postgresConns)
}

// transact is like write, for several statements in one transaction. If ctx ends, do may
// still run: it must not write to variables that the caller reads after an error.
func (d *database) transact(ctx context.Context, may room, do func(ctx context.Context, tx *sql.Tx) error) error {
	return d.write(ctx, may, func(ctx context.Context) error { return d.transaction(ctx, do) })
}

func (d *database) transaction(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) error) error {
	if d.group != nil {
		return d.group.commit(ctx, do)
	}
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

// explain wraps an error of the database. Every failed statement counts as unavailable: the
// statements are correct, so what failed is the connection, the server or its disk.
func (d *database) explain(err error) error {
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) {
		return err
	}
	if sqlState(err) != "" && d.operator(err) {
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrDenied, d.redact(err))
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, d.redact(err))
}

// hide makes redact remove secrets.
func (d *database) hide(secrets ...string) {
	d.secretsMu.Lock()
	defer d.secretsMu.Unlock()
	for _, secret := range secrets {
		if secret != "" && !slices.Contains(d.secrets, secret) {
			d.secrets = append(d.secrets, secret)
		}
	}
}

// redact removes the secrets from the text of an error.
func (d *database) redact(err error) error {
	d.secretsMu.Lock()
	defer d.secretsMu.Unlock()
	text := err.Error()
	for _, secret := range d.secrets {
		text = strings.ReplaceAll(text, secret, "xxxxx")
	}
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}
