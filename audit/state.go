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
	// trustWritten is how long a write that was carried out tells that the next one
	// will be; then a question for that writes a row itself.
	trustWritten = 5 * time.Second
	// trustRefused is the same of a write that was refused.
	trustRefused = 2 * time.Second
	// probeBytes is the size of the row that is written to see whether one can be:
	// larger than most, so that it does not find room where they would not.
	probeBytes = 1 << 10
)

// state is what is known of the next write: what came of the last one.
type state struct {
	mu      sync.Mutex
	err     error
	at      time.Time
	probing bool
}

// learn notes what came of a write, and logs it once when that changes.
func (d *database) learn(err error) {
	if errors.Is(err, ErrNotFound) {
		err = nil // it was asked for and answered
	}
	d.state.mu.Lock()
	before := d.state.err
	d.state.err, d.state.at = err, time.Now()
	if errors.Is(err, link.ErrAway) || errors.Is(err, context.DeadlineExceeded) {
		d.state.at = time.Time{} // it answered nothing: the next answer says more
	}
	d.state.mu.Unlock()
	switch {
	case err != nil && before == nil:
		d.log.Error("the audit database takes no rows, changes are refused until it does", "error", err)
	case err == nil && before != nil:
		d.log.Info("the audit database takes rows again")
	}
}

// ping reads, and says whether a row could be written: a full disk answers reads.
// However often it is asked, it writes no more than one row every few seconds.
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

// known returns what came of the last write, unless that is too long ago; then its
// caller alone finds out, and calls probed.
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

// probe writes a row as a change would, and deletes it with the same commit.
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
