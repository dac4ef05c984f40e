package audit

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

const (
	// retainEvery is the interval of deleting rows older than the retention.
	retainEvery = time.Hour
	// retainBatch is the number of rows per deleting transaction, and retainPause the pause
	// after it, because in SQLite all changes wait for the transaction.
	retainBatch = 1000
	retainPause = 100 * time.Millisecond
)

// retain deletes rows older than the retention, now and every hour.
func (l *Log) retain(ctx context.Context) {
	for {
		if deleted, err := l.expire(ctx); err != nil && ctx.Err() == nil {
			l.opts.Log.Warn("cannot delete old audit rows, retrying later", "error", err)
		} else if deleted > 0 {
			l.opts.Log.Info("deleted old audit rows", "rows", deleted, "retention_days", l.opts.RetentionDays)
		}
		if !pause(ctx, retainEvery) {
			return
		}
	}
}

// expire deletes in batches until no row is too old, or until another replica is deleting.
func (l *Log) expire(ctx context.Context) (deleted int64, err error) {
	before := time.Now().Add(-time.Duration(l.opts.RetentionDays) * 24 * time.Hour)
	for {
		n, err := l.expireBatch(ctx, before)
		if deleted += n; err != nil || n < retainBatch {
			return deleted, err
		}
		if !pause(ctx, retainPause) {
			return deleted, ctx.Err()
		}
	}
}

func (l *Log) expireBatch(ctx context.Context, before time.Time) (int64, error) {
	var deleted int64
	err := l.db.transact(ctx, ordinary, func(ctx context.Context, tx *sql.Tx) error {
		if l.db.tryLockTx != "" {
			var ours bool
			if err := tx.QueryRowContext(ctx, fmt.Sprintf(l.db.tryLockTx, lockRetain)).Scan(&ours); err != nil || !ours {
				return err
			}
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM audit_entries WHERE id IN
			(SELECT id FROM audit_entries WHERE timestamp < $1 ORDER BY timestamp, id LIMIT $2)`, l.db.time(stampOf(before)), retainBatch)
		if err != nil {
			return err
		}
		if deleted, err = res.RowsAffected(); err != nil || deleted == retainBatch {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM audit_lives WHERE provisioned = 0 AND destroyed_at < $1`, l.db.time(stampOf(before)))
		return err
	})
	if err != nil {
		return 0, err
	}
	return deleted, nil
}
