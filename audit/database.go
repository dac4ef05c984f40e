package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/link"
)

// CallTimeout bounds one call: far above what a healthy database needs, short
// enough that a hung one yields 503.
const CallTimeout = 5 * time.Second

// minSilence is how long a call waits at least before its end says something of the
// server: some callers have less patience.
const minSilence = CallTimeout * 9 / 10

// database is a SQL database of either kind.
type database struct {
	*dialect
	writer *sql.DB
	reader *sql.DB

	log  hclog.Logger
	disk *disk // SQLite: the files; nil with PostgreSQL

	// secrets are the words of the URL that no error may show.
	secrets []string
	// ready says that the schema is up; preparing is held by who brings it up.
	ready     atomic.Bool
	preparing chan struct{}
	state     state
	// circuit refuses calls while a server does not answer; nil with SQLite.
	circuit *link.Circuit
}

// dialect is what the two kinds of database say differently.
type dialect struct {
	name       string               // the directory of its migrations
	jsonObject string               // the function that makes a JSON object of names and values
	forUpdate  string               // ends a SELECT of a row that is about to be changed
	lockTx     string               // waits for the lock %d until the transaction ends; empty where writers take turns anyway
	tryLockTx  string               // the same without waiting: selects whether it was got
	time       func(time.Time) any  // a time as an argument
	insert     insert               // runs an INSERT INTO audit_entries and returns its id
	operator   func(err error) bool // whether only an operator can mend it
	unsent     func(err error) bool // whether a statement surely was not carried out
	damaged    func(err error) bool // whether the file is broken, or something else than a database
	turnedAway func(err error) bool // whether nothing was carried out, for the connection led to a server that takes no writes
}

type insert func(ctx context.Context, db *sql.DB, query string, args ...any) (int64, error)

// openDatabase opens the database of a URL; whether it can be reached is not
// known yet.
func openDatabase(url string, log hclog.Logger) (*database, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case ok && scheme == "sqlite":
		return openSQLite(rest, log)
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return openPostgres(url, log)
	}
	// Not echoed: what is wrong about it may be that a password stands first.
	return nil, errors.New("audit: the database URL must begin with sqlite:// or postgres://")
}

func newDatabase(d *dialect, log hclog.Logger) *database {
	return &database{dialect: d, log: log, preparing: make(chan struct{}, 1)}
}

func (d *database) close() error {
	var errs []error
	d.circuit.Close()
	// The writer goes last: SQLite removes its log with the last connection, and
	// a query-only one cannot.
	errs = append(errs, d.disk.unpin())
	if d.reader != nil && d.reader != d.writer {
		errs = append(errs, d.reader.Close())
	}
	if d.writer != nil {
		errs = append(errs, d.writer.Close())
	}
	return errors.Join(append(errs, d.disk.unlock())...)
}

// call runs one call with the database's time limit, after the schema is up. It fails
// at once while the server is known not to answer.
func (d *database) call(ctx context.Context, do func(ctx context.Context) error) error {
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

// room is what of the disk a write may take.
type room bool

const (
	// ordinary: not the reserve.
	ordinary room = false
	// reserved: the reserve too, for what makes room and for what was begun.
	reserved room = true
)

// write is call for one that changes something. A server that takes no writes
// any more is left, with all connections to it, and another one is asked. A write
// that does not end in the file of the database's name is an error.
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
			d.disk.handOver() // or wait until another call has
			if may == reserved {
				err = do(ctx)
			}
		}
		return errors.Join(err, d.disk.same())
	})
	// What its caller gave up says nothing about the database, and what found room
	// in the reserve, or in a row's page, says nothing about the next change.
	if !errors.Is(err, context.Canceled) && (err != nil || may == ordinary) {
		d.learn(err)
	}
	return err
}

// dropIdle closes the connections that nobody uses; what follows makes new ones.
func (d *database) dropIdle() {
	d.writer.SetMaxIdleConns(0)
	d.writer.SetMaxIdleConns(postgresConns)
}

// transact is write for more than one statement: all of them or none.
func (d *database) transact(ctx context.Context, may room, do func(ctx context.Context, tx *sql.Tx) error) error {
	return d.write(ctx, may, func(ctx context.Context) error { return d.transaction(ctx, do) })
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
