package engine

import (
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"time"
)

// Memory is one input that the engine stored.
type Memory struct {
	ID    int64     `json:"id"`
	Input string    `json:"input"`
	At    time.Time `json:"at"`
}

// ProcessRun is one process that has used this brain. EndedAt is nil while it runs, and
// stays nil if it was killed. In a container the PID is usually 1, and Host is the
// container's id.
type ProcessRun struct {
	ID        int64      `json:"id"`
	PID       int        `json:"pid"`
	Host      string     `json:"host"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at"`
}

// Export writes the whole brain as one JSON object from one snapshot, row by row, so that
// its memory use does not depend on the size of the brain.
func (b *Brain) Export(ctx context.Context, w io.Writer) error {
	tx, err := b.reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // it only read
	enc := json.NewEncoder(w)
	if _, err := io.WriteString(w, `{"memories":[`); err != nil {
		return err
	}
	err = rows(ctx, tx, w, enc, `SELECT id, input, at FROM memories ORDER BY id`, func(scan scanner) (any, error) {
		var m Memory
		var at int64
		err := scan(&m.ID, &m.Input, &at)
		m.At = stamp(at)
		return m, err
	})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, `],"runs":[`); err != nil {
		return err
	}
	err = rows(ctx, tx, w, enc, `SELECT id, pid, host, started_at, ended_at FROM runs ORDER BY id`, func(scan scanner) (any, error) {
		var r ProcessRun
		var started int64
		var ended sql.NullInt64
		err := scan(&r.ID, &r.PID, &r.Host, &started, &ended)
		r.StartedAt = stamp(started)
		if ended.Valid {
			t := stamp(ended.Int64)
			r.EndedAt = &t
		}
		return r, err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, "]}\n")
	return err
}

type scanner func(dest ...any) error

// rows writes the result of decode for each row, separated by commas.
func rows(ctx context.Context, tx *sql.Tx, w io.Writer, enc *json.Encoder, query string, decode func(scanner) (any, error)) error {
	rs, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rs.Close()
	for n := 0; rs.Next(); n++ {
		v, err := decode(rs.Scan)
		if err != nil {
			return err
		}
		if n > 0 {
			if _, err := io.WriteString(w, ","); err != nil {
				return err
			}
		}
		if err := enc.Encode(v); err != nil {
			return err
		}
	}
	return rs.Err()
}

func stamp(unixNano int64) time.Time { return time.Unix(0, unixNano).UTC() }
