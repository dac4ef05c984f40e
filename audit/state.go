package audit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/septemberai/orch/internal/link"
)

const (
	// trustWritten is how long a successful write predicts that the next one will succeed.
	// After that, a ping writes a test row.
	trustWritten = 5 * time.Second
	// trustRefused is how long a failed write predicts that the next one will fail.
	trustRefused = 2 * time.Second
	// probeBytes is the size of the test row: larger than most rows, so that it does not
	// fit where they would not.
	probeBytes = 1 << 10
)

// state is the result of the last write, which predicts the next one.
type state struct {
	mu      sync.Mutex
	err     error
	at      time.Time
	probing bool
}

// learn records the result of a write, and logs when it changes.
func (d *database) learn(err error) {
	if errors.Is(err, ErrNotFound) {
		err = nil // the database has responded
	}
	d.state.mu.Lock()
	before := d.state.err
	d.state.err, d.state.at = err, time.Now()
	if errors.Is(err, link.ErrAway) || errors.Is(err, context.DeadlineExceeded) {
		d.state.at = time.Time{} // there was no response, so the result is not trusted
	}
	d.state.mu.Unlock()
	switch {
	case err != nil && before == nil:
		d.log.Error("cannot write to the audit database, so changes are refused until it works again", "error", err)
	case err == nil && before != nil:
		d.log.Info("can write to the audit database again")
	}
}

// ping checks that rows can be read, and that a row could be written, because reads work on
// a full disk. However often it is called, it writes at most one row every few seconds.
func (d *database) ping(ctx context.Context) error {
	err := d.call(ctx, func(ctx context.Context) error {
		if err := d.disk.same(); err != nil {
			return err
		}
		var version int
		return d.reader.QueryRowContext(ctx, `SELECT MAX(version) FROM audit_migrations`).Scan(&version)
	})
	if err != nil {
		return err
	}
	known, err := d.state.known()
	if known {
		return err
	}
	defer d.state.probed()
	return d.probe(ctx)
}

// known returns the result of the last write and true, unless it is too old. Then it
// returns false to one caller only, which must probe and call probed.
func (s *state) known() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	trust := trustWritten
	if s.err != nil {
		trust = trustRefused
	}
	if s.probing || time.Since(s.at) < trust {
		return true, s.err
	}
	s.probing = true
	return false, nil
}

func (s *state) probed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = false
}

// probe writes a row as a change would, and deletes it in the same transaction.
func (d *database) probe(ctx context.Context) error {
	at, name := d.time(stampOf(time.Time{})), rand.Text()
	return d.transact(ctx, ordinary, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, insertEntry, at, "", strings.Repeat("x", probeBytes), "", "probe", actorSystem, name, OutcomeOK, "{}", nil, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM audit_entries WHERE action = 'probe' AND timestamp = $1 AND request_id = $2`, at, name)
		return err
	})
}
