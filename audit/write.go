package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"
)

const insertEntry = `INSERT INTO audit_entries
	(timestamp, product_id, user_id, engine_id, action, actor, request_id, outcome, metadata, duration_ms, boot_ms)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`

// Begin writes the row of a change that is about to be made. Its outcome is "interrupted"
// and its duration unknown until [Log.Complete] is called. When Begin returns, the row is
// on disk. After an error ([ErrUnavailable]) the change must not be made. If the row was
// written although the response was lost, [Log.Run] completes it with [OutcomeUnavailable].
func (l *Log) Begin(ctx context.Context, e Entry) (id int64, err error) {
	e.Outcome, e.DurationMS, e.Timestamp = OutcomeInterrupted, nil, stampOf(e.Timestamp)
	args, err := l.columns(e, nil)
	if err != nil {
		return 0, err
	}
	sent := false
	err = l.db.write(ctx, roomOf(e.Action), func(ctx context.Context) error {
		id, err = l.db.insert(ctx, l.db, insertEntry, args...)
		sent = err != nil && !l.db.unsent(err)
		return err
	})
	if sent {
		l.doubts.add(doubt{entry: e})
	}
	return id, err
}

// roomOf allows actions that remove or end an engine to write their row on a full disk.
func roomOf(action string) room {
	switch action {
	case ActionDestroy, ActionStop, ActionProductDelete, ActionOrphanRemoved, ActionDiscard:
		return reserved
	}
	return ordinary
}

// Record writes the row of a finished event. An empty outcome means "ok".
func (l *Log) Record(ctx context.Context, e Entry) error {
	if e.Outcome == "" {
		e.Outcome = OutcomeOK
	}
	args, err := l.columns(e, bootMS(e.Action, e.Metadata))
	if err != nil {
		return err
	}
	return l.db.transact(ctx, ordinary, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, insertEntry, args...); err != nil {
			return err
		}
		return l.count(ctx, tx, e.Action, e.Outcome, life{clean(e.EngineID), clean(e.ProductID)})
	})
}

// columns returns the arguments of insertEntry.
func (l *Log) columns(e Entry, bootMS *int64) ([]any, error) {
	metadata, err := encodeMetadata(e.Metadata)
	if err != nil {
		return nil, err
	}
	return []any{
		l.db.time(stampOf(e.Timestamp)), clean(e.ProductID), clean(e.UserID), clean(e.EngineID), clean(e.Action),
		clean(e.Actor), clean(e.RequestID), clean(e.Outcome), metadata, e.DurationMS, bootMS,
	}, nil
}

// Completion is the result of a change.
type Completion struct {
	Outcome  string         // "ok" or an error code; empty means "ok"
	EngineID string         // if it was unknown at the beginning
	Metadata map[string]any // merged into the metadata of [Log.Begin]
	Duration time.Duration  // stored in whole milliseconds
}

// Complete records the result of a change in its row, and counts it in the totals, in one
// transaction. Only the first completion of a row has an effect, so Complete may be called
// again if an error leaves open whether it was written ([ErrUnavailable]). [ErrNotFound]:
// no row has this id.
func (l *Log) Complete(ctx context.Context, id int64, c Completion) error {
	if c.Outcome == "" {
		c.Outcome = OutcomeOK
	}
	if _, err := encodeMetadata(c.Metadata); err != nil {
		return err
	}
	return l.db.transact(ctx, reserved, func(ctx context.Context, tx *sql.Tx) error {
		var productID, action, outcome, engineID, text string
		var duration sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT product_id, action, outcome, engine_id, metadata, duration_ms
			FROM audit_entries WHERE id = $1`+l.db.forUpdate, id).Scan(&productID, &action, &outcome, &engineID, &text, &duration)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: %d", ErrNotFound, id)
		}
		if err != nil {
			return err
		}
		if outcome != OutcomeInterrupted || duration.Valid {
			return nil
		}
		metadata, err := decodeMetadata(text)
		if err != nil {
			return err
		}
		maps.Copy(metadata, c.Metadata)
		if text, err = encodeMetadata(metadata); err != nil {
			return err
		}
		if c.EngineID != "" {
			engineID = clean(c.EngineID)
		}
		_, err = tx.ExecContext(ctx, `UPDATE audit_entries
			SET outcome = $2, engine_id = $3, metadata = $4, duration_ms = $5, boot_ms = $6 WHERE id = $1`,
			id, clean(c.Outcome), engineID, text, c.Duration.Milliseconds(), bootMS(action, metadata))
		if err != nil {
			return err
		}
		return l.count(ctx, tx, action, c.Outcome, life{engineID, productID})
	})
}
