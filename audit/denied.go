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
	// denialFlush is how far the rows of denied admits lag behind.
	denialFlush = 3 * time.Second
	// denialBatch is how many rows one transaction writes: what it costs fits
	// well into a call's time limit, and in SQLite changes wait for it.
	denialBatch = 500
	// maxDenials bounds the denials that wait, in rows: with user_ids of 256
	// bytes about 8 MB. Beyond it users are counted together, and beyond twice
	// that everything.
	maxDenials = 10_000
)

// denial is what a row of denied admits counts.
type denial struct {
	productID, userID, reason string
	minute                    int64 // Unix time / 60
}

// reasonOverflow stands for any reason, of any product, when the database has
// been away for so long that there is no room to tell them apart.
const reasonOverflow = "overflow"

// denials are the counts that no row has yet.
type denials struct {
	mu       sync.Mutex
	counts   map[denial]int64
	overflow denial // the row of what there was no room for; its minute is its first
	warned   bool   // flush has said that the database is away; Run's goroutine alone uses it
}

// Denied counts a denied admit. It touches memory alone: it never waits for the
// database and never fails, and what it keeps is bounded. The row of a product,
// user, reason and minute says in its metadata "reason" and "count"; it appears,
// and grows, within seconds while [Log.Run] runs. When too many users are denied
// at a time to keep them apart, the rest is counted under an empty user.
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

// room says whether key has a count already or may get one.
func (d *denials) room(key denial, limit int) bool {
	return d.counts[key] > 0 || len(d.counts) < limit
}

// take hands over the counts so far.
func (d *denials) take() map[denial]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := d.counts
	d.counts = nil
	return counts
}

// flushDenials writes the counts every few seconds, and once more when ctx has
// ended.
func (l *Log) flushDenials(ctx context.Context) {
	for pause(ctx, denialFlush) {
		l.flush(ctx)
	}
	l.flush(context.WithoutCancel(ctx))
}

// flush writes the counts; those that could not be written wait for the next
// time. Each is in one row, and is added twice only when the database wrote it
// and its answer was lost.
func (l *Log) flush(ctx context.Context) {
	counts := l.denials.take()
	// In one order on all replicas: two that write the same rows would otherwise
	// wait for each other's.
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
				l.opts.Log.Warn("denied admits are not written down, they are kept until the database is back", "rows", len(keys), "error", err)
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
