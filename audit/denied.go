package audit

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// denialFlush is the maximum delay of the rows of denied admits.
	denialFlush = 3 * time.Second
	// denialBatch is the number of rows per transaction. It fits into a call's time limit,
	// which matters because in SQLite all changes wait for the transaction.
	denialBatch = 500
	// maxDenials limits the counts in memory, in rows: about 8 MB with user_ids of 256
	// bytes. Above it, the users of a product are counted together; above twice that
	// number, everything is counted together.
	maxDenials = 10_000
)

// denial is the key of a row of denied admits.
type denial struct {
	productID, userID, reason string
	minute                    int64 // Unix time / 60
}

// reasonOverflow is the reason of denials that are all counted together, because the
// database was unavailable for so long that the limit is reached.
const reasonOverflow = "overflow"

// denials are the counts that are not in a row yet.
type denials struct {
	mu       sync.Mutex
	counts   map[denial]int64
	overflow denial // the row for everything beyond the limit; its minute is that of the first denial
	warned   bool   // flush has logged that the database is unavailable; used only by Run's goroutine
}

// Denied counts a denied admit in memory. It never waits for the database and never fails,
// and its memory is limited. There is a row per product, user, reason and minute, with
// "reason" and "count" in its metadata. While [Log.Run] runs, it appears and grows within
// seconds. If too many users are denied at the same time, the rest is counted under an
// empty user.
func (l *Log) Denied(productID, userID, reason string) {
	l.denials.add(denial{productID, userID, reason, time.Now().Unix() / 60}, 1)
}

func (d *denials) add(key denial, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts == nil {
		d.counts = map[denial]int64{}
	}
	if !d.room(key, maxDenials) {
		if key.userID = ""; !d.room(key, 2*maxDenials) {
			if d.counts[d.overflow] == 0 {
				d.overflow = denial{reason: reasonOverflow, minute: key.minute}
			}
			key = d.overflow
		}
	}
	d.counts[key] += n
}

// room reports whether key has a count or may get one.
func (d *denials) room(key denial, limit int) bool {
	return d.counts[key] > 0 || len(d.counts) < limit
}

// take returns the counts so far and resets them.
func (d *denials) take() map[denial]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := d.counts
	d.counts = nil
	return counts
}

// flushDenials writes the counts every few seconds, and once more after ctx has ended.
func (l *Log) flushDenials(ctx context.Context) {
	for pause(ctx, denialFlush) {
		l.flush(ctx)
	}
	l.flush(context.WithoutCancel(ctx))
}

// flush writes the counts, and keeps those that could not be written. A count is in one
// row. It is added twice only if the database wrote it but its response was lost.
func (l *Log) flush(ctx context.Context) {
	counts := l.denials.take()
	// All replicas write in the same order. Otherwise two replicas with the same rows would
	// wait for each other.
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b denial) int {
		return cmp.Or(cmp.Compare(a.minute, b.minute), strings.Compare(a.productID, b.productID),
			strings.Compare(a.userID, b.userID), strings.Compare(a.reason, b.reason))
	})
	for batch := range slices.Chunk(keys, denialBatch) {
		if err := l.writeDenials(ctx, batch, counts); err != nil {
			for _, key := range keys {
				l.denials.add(key, counts[key])
			}
			if !l.denials.warned {
				l.opts.Log.Warn("cannot write denied admits, keeping their counts until the database is back", "rows", len(keys), "error", err)
			}
			l.denials.warned = true
			return
		}
		keys = keys[len(batch):]
	}
	if len(counts) > 0 {
		l.denials.warned = false
	}
}

func (l *Log) writeDenials(ctx context.Context, keys []denial, counts map[denial]int64) error {
	//nolint:gosec // G202: the parts are constants, and the name of a function of the database
	upsert := `INSERT INTO audit_entries
		(timestamp, product_id, user_id, engine_id, action, actor, request_id, outcome, metadata, reason, denials)
		VALUES ($1, $2, $3, '', '` + ActionAdmitDenied + `', '` + actorSystem + `', '', '` + OutcomeOK + `',
			` + l.db.jsonObject + `('reason', CAST($4 AS TEXT), 'count', CAST($5 AS BIGINT)), $4, $5)
		ON CONFLICT (product_id, user_id, reason, timestamp) WHERE action = '` + ActionAdmitDenied + `'
		DO UPDATE SET denials = audit_entries.denials + excluded.denials,
			metadata = ` + l.db.jsonObject + `('reason', excluded.reason, 'count', audit_entries.denials + excluded.denials)`
	return l.db.transact(ctx, ordinary, func(ctx context.Context, tx *sql.Tx) error {
		for _, key := range keys {
			_, err := tx.ExecContext(ctx, upsert, l.db.time(time.Unix(key.minute*60, 0).UTC()),
				clean(key.productID), clean(key.userID), clean(key.reason), counts[key])
			if err != nil {
				return err
			}
		}
		return nil
	})
}
